"""SIGKILL to each process, alone and together, in the middle of a stage: what is seen, and that no work is lost."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from stages.config.yaml import read_yaml

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, make_served: Callable[[Path], Any]) -> Iterator[Any]:
    """A `ril serve` that the tests may kill."""
    one = make_served(tmp_path_factory.mktemp("kills"))
    yield one
    one.kill()


def training(own: Any, steps: int, deployment: str = f"run-model/{JUDGE}") -> tuple[str, list[psutil.Process]]:
    """Sets the judge's steps in params.yaml, presses Run and waits for a checkpoint: the run; dvc and the stage."""
    path = own.project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["models"]["judge"]["build"]["steps"] = steps
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    kept = set(checkpoints(own))
    run = own.started(own.deployment(deployment), {"target": JUDGE, "settings": {}})
    own.until(lambda: set(checkpoints(own)) - kept, 300, "no checkpoint")
    workers = own.workers()
    assert len(workers) == 2, "dvc and the stage"
    return run, workers


def checkpoints(own: Any) -> list[Path]:
    return list(own.project.glob(".ril/runs/model@judge/*/step_*/DONE"))


def process_of(own: Any, run: str) -> psutil.Process:
    """The process of the form's run."""
    return psutil.Process(int((own.project / ".ril" / "triggers" / run).read_text().split()[0]))


def server_of(own: Any) -> psutil.Process:
    """The process of the Prefect server."""
    (found,) = [process for process in own.everything() if "flows.ui.prefect_server" in " ".join(process.cmdline())]
    return found


def recorded_steps(own: Any) -> int:
    """Steps of the judge that dvc.lock records."""
    lock = read_yaml(own.project / "dvc.lock")["stages"][JUDGE]
    return int(lock["params"]["params.yaml"]["models.judge"]["build"]["steps"])


def test_a_killed_server_is_started_again_and_the_run_completes(own: Any) -> None:
    run, workers = training(own, 150)
    server_of(own).kill()
    own.until(lambda: "ended (-9); starting it again" in own.log.read_text(), 60, "nobody noticed")
    own.until(own.answers, 300, "the server did not come back")
    ended = own.ended(run, 300)
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", f"Ran {JUDGE}; dvc.lock says so"), (
        own.lines(run)
    )
    assert recorded_steps(own) == 150
    assert not own.alive(workers)


def test_a_killed_run_is_crashed_and_what_it_started_is_recorded(own: Any) -> None:
    run, _ = training(own, 151)
    process_of(own, run).kill()
    assert own.ended(run, 120)["state_type"] == "CRASHED"
    own.until(lambda: not own.workers(), 300, "dvc did not end")
    assert recorded_steps(own) == 151


def test_a_killed_ril_serve_leaves_the_run_which_a_new_one_shows_to_its_end(own: Any) -> None:
    run, workers = training(own, 154)
    for process in workers:
        process.suspend()  # until the new `ril serve` is there
    triggered = process_of(own, run)
    server = server_of(own)
    own.process.kill()
    own.process.wait(30)
    psutil.wait_procs([server], 60)
    assert not own.alive([server]), "the server ends with it"
    assert own.alive([triggered])
    own.start()
    for process in workers:
        process.resume()
    ended = own.ended(run, 300)
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", f"Ran {JUDGE}; dvc.lock says so"), (
        own.lines(run)
    )
    assert recorded_steps(own) == 154
    psutil.wait_procs([triggered], 60)
    assert not own.alive([triggered])


def test_when_server_and_run_are_killed_the_stage_ends_its_work(own: Any) -> None:
    run, workers = training(own, 152)
    own.kill(but=workers)
    assert own.alive(workers) == workers
    psutil.wait_procs(workers, 300)
    assert recorded_steps(own) == 152
    own.start()
    assert own.run(run)["state_type"] == "CRASHED"
    assert "Its process was killed. What it had done is kept" in own.run(run)["state"]["message"]


def test_when_everything_is_killed_the_next_run_goes_on(own: Any) -> None:
    run, workers = training(own, 153)
    own.kill()
    psutil.wait_procs(workers, 60)
    assert checkpoints(own)
    own.start()
    assert own.run(run)["state_type"] == "CRASHED"
    again = own.submit(JUDGE, settings={})
    assert own.ended(again, 300)["state_type"] == "COMPLETED", own.lines(again)
    assert f"{JUDGE}: resumes after step" in own.lines(again)
    assert recorded_steps(own) == 153


# --- the work pool of prefect.yaml -----------------------------------------------------------------------------------

IN_POOL = "start/stage-in-pool"


def prefect(own: Any, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


@pytest.fixture(scope="module")
def pool(own: Any) -> dict[str, str]:
    """A work pool with the deployments of prefect.yaml; the environment of its workers."""
    shutil.copy(ROOT / "prefect.yaml", own.project)
    environment = own.environment() | own.variables() | {"PWD": str(own.project)}
    for words in (["work-pool", "create", "--type", "process", "ril"], ["--no-prompt", "deploy", "--all"]):
        subprocess.run(prefect(own, *words), cwd=own.project, env=environment, check=True, timeout=180)
    return environment


@pytest.fixture
def start_worker(own: Any, pool: dict[str, str]) -> Iterator[Callable[[], psutil.Process]]:
    """Starts a worker of the pool, as prefect.yaml says."""
    started: list[psutil.Process] = []

    def start() -> psutil.Process:
        log = (own.home / f"worker-{len(started)}.log").open("wb")
        words = prefect(own, "worker", "start", "--pool", "ril")
        started.append(psutil.Popen(words, cwd=own.project, env=pool, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return started[-1]

    yield start
    for worker in started:
        if own.alive([worker]):
            for process in [*worker.children(recursive=True), worker]:
                process.kill()
        worker.wait(30)


def test_a_killed_worker_leaves_its_run_to_end_and_the_next_worker_goes_on(own: Any, start_worker: Any) -> None:
    worker = start_worker()
    run, workers = training(own, 155, IN_POOL)
    triggered = process_of(own, run)
    assert worker in triggered.parents()
    worker.kill()
    ended = own.ended(run, 300)
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", f"Ran {JUDGE}; dvc.lock says so"), (
        own.lines(run)
    )
    assert recorded_steps(own) == 155
    psutil.wait_procs([triggered, *workers], 60)
    start_worker()
    again = own.started(own.deployment(IN_POOL), {"target": JUDGE})
    assert own.ended(again, 300)["state"]["message"] == "Everything was up to date", own.lines(again)


def test_when_worker_and_run_are_killed_the_next_run_says_so(own: Any, start_worker: Any) -> None:
    worker = start_worker()
    run, workers = training(own, 156, IN_POOL)
    everything = worker.children(recursive=True)
    assert process_of(own, run) in everything
    for process in [worker, *({*everything} - {*workers})]:
        process.kill()
    psutil.wait_procs(workers, 300)
    assert recorded_steps(own) == 156, "dvc and the stage went on"
    assert own.run(run)["state_type"] == "RUNNING", "nobody is left to say otherwise"
    start_worker()
    again = own.started(own.deployment("start/pipeline-in-pool"), {"target": JUDGE})
    assert own.ended(again, 300)["state"]["message"] == "Everything was up to date", own.lines(again)
    assert own.run(run)["state_type"] == "CRASHED"
    assert "Its process was killed. What it had done is kept" in own.run(run)["state"]["message"]

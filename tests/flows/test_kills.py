"""SIGKILL to the server, the form's run, both, everything, in the middle of a stage: what is seen, and that no work is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.server import server_answers
from stages.job import read_yaml

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, make_served: Callable[[Path], Any]) -> Iterator[Any]:
    """A `ril serve` that the tests may kill."""
    one = make_served(tmp_path_factory.mktemp("kills"))
    yield one
    one.kill()


def training(own: Any, steps: int) -> tuple[str, list[psutil.Process]]:
    """Sets the judge's steps in params.yaml, presses Run and waits for a checkpoint: the run; dvc and the stage."""
    path = own.project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["models"]["judge"]["build"]["steps"] = steps
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    kept = set(checkpoints(own))
    run = own.submit(JUDGE, settings={})
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
    (found,) = [process for process in own.everything() if "prefect server start" in " ".join(process.cmdline())]
    return found


def recorded_steps(own: Any) -> int:
    """Steps of the judge that dvc.lock records."""
    lock = read_yaml(own.project / "dvc.lock")["stages"][JUDGE]
    return int(lock["params"]["params.yaml"]["models.judge"]["build"]["steps"])


def test_a_killed_server_is_started_again_and_the_run_completes(own: Any) -> None:
    run, workers = training(own, 150)
    server_of(own).kill()
    own.until(lambda: "ended (-9); starting it again" in own.log.read_text(), 60, "nobody noticed")
    own.until(lambda: server_answers(f"{own.url}/api", 2.0), 300, "the server did not come back")
    ended = own.ended(run, 300)
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", f"Ran {JUDGE}; dvc.lock says so"), own.lines(run)
    assert recorded_steps(own) == 150
    assert not [process for process in workers if process.is_running()]


def test_a_killed_run_is_crashed_and_what_it_started_is_recorded(own: Any) -> None:
    run, _ = training(own, 151)
    process_of(own, run).kill()
    assert own.ended(run, 120)["state_type"] == "CRASHED"
    own.until(lambda: not own.workers(), 300, "dvc did not end")
    assert recorded_steps(own) == 151


def test_when_server_and_run_are_killed_the_stage_ends_its_work(own: Any) -> None:
    run, workers = training(own, 152)
    own.kill(but=workers)
    assert all(process.is_running() for process in workers)
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
    assert f"{JUDGE}: goes on after step" in own.lines(again)
    assert recorded_steps(own) == 153

"""Starting dvc: recorded results, and no process left behind whatever ends the run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from flows.dvc import repro as dvc
from flows.dvc.locks import ExperimentLock
from stages.config.yaml import read_yaml

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
MANY_QUESTIONS = {"questions": {"splits": {"warm_start": 20000, "imitation": 4, "validation": 2, "test": 4}}}


@pytest.fixture
def make_repo(make_project: Callable[..., Path]) -> Callable[..., Path]:
    def make(*arguments: object) -> Path:
        project = make_project(*arguments)
        Repo.init(str(project), no_scm=True).close()
        return project

    return make


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is `folder`, zombies left out."""

    def inside() -> Iterator[int]:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cwd").resolve() == folder.resolve() and "Z (zombie)" not in (entry / "status").read_text():
                    yield int(entry.name)
            except OSError:  # it ended while we looked
                continue

    return list(inside())


def stage_process(folder: Path) -> int | None:
    """The process of the stage that dvc runs in `folder`, once it is at work."""
    if not list((folder / "stages" / "tiny" / "world" / "__pycache__").glob("pictures.*.pyc")):
        return None
    for number in processes_in(folder):
        if b"flows.run" in Path(f"/proc/{number}/cmdline").read_bytes():
            return number
    return None


def wait_for_stage(folder: Path, process: "subprocess.Popen[str]") -> int:
    end = time.monotonic() + 90
    while (number := stage_process(folder)) is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the stage did not start"
        time.sleep(0.1)
    return number


def wait_until_gone(folder: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while processes_in(folder):
        assert time.monotonic() < end, f"left behind: {processes_in(folder)}"
        time.sleep(0.1)


@pytest.mark.slow
def test_ril_run_records_the_stage_and_skips_it_afterwards(make_repo: Callable[..., Path], call: Call) -> None:
    project = make_repo()
    code, out, err = call(project, "flows.cli", "run", "--no-server", "questions")
    assert code == 0, out + err
    assert "questions: done in" in out
    lock = read_yaml(project / "dvc.lock")["stages"]["questions"]
    assert [entry["path"] for entry in lock["outs"]] == ["data/questions", "reports/questions/metrics.json"]
    code, out, err = call(project, "flows.cli", "run", "--no-server", "questions")
    assert code == 0
    assert "Stage 'questions' didn't change, skipping" in out
    assert len(list((project / ".ril" / "logs").glob("dvc-*.log"))) == 2
    shutil.rmtree(project / ".ril")  # as in a clone: Git has dvc.lock and reports/questions/code.json
    with (project / "stages" / "questions.py").open("a") as file:
        file.write("# another comment\n")
    code, out, err = call(project, "flows.cli", "status", "questions")
    assert code == 0, err
    assert out.splitlines()[0] == "questions  stale in words only"


def test_a_failed_stage_is_reported_and_not_recorded(make_repo: Callable[..., Path], call: Call) -> None:
    project = make_repo({"questions": {"splits": {"test": 1}, "kind": "rows", "path": "mine.parquet"}})
    (project / "mine.parquet").write_text("no parquet")
    code, out, _err = call(project, "flows.cli", "run", "--no-server", "questions")
    assert code not in (0, 2)
    assert "failed to reproduce 'questions'" in out
    assert not (project / "dvc.lock").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopping_ril_run_ends_every_process(
    make_repo: Callable[..., Path], start: Start, number: signal.Signals, code: int
) -> None:
    project = make_repo(MANY_QUESTIONS)
    process = start(project, "flows.cli", "run", "questions")
    wait_for_stage(project, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    wait_until_gone(project, 1.0)
    assert not (project / "data" / "questions").exists()
    assert not (project / "dvc.lock").exists()


@pytest.mark.parametrize(
    "shell", ["/bin/sh", "/bin/bash"]
)  # dvc starts a stage in it; dash keeps its place unless told to exec
def test_a_killed_dvc_takes_its_stage_along(make_repo: Callable[..., Path], start: Start, shell: str) -> None:
    project = make_repo(MANY_QUESTIONS)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = start(project, "dvc", "repro", "questions", PATH=path, SHELL=shell)
    wait_for_stage(project, process)
    process.kill()
    process.wait(timeout=30)
    wait_until_gone(project)
    assert not (project / "data" / "questions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["full disk", "dead reader"])
def test_the_work_goes_on_when_its_output_can_not_be_written(make_repo: Callable[..., Path], output: str) -> None:
    """Else `ril run` ends at the next line, and its dvc goes on by itself."""
    project = make_repo()
    words = [sys.executable, "-m", "flows.cli", "run", "questions"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    with Path("/dev/full" if output == "full disk" else os.devnull).open("wb") as full:
        given: Any = full if output == "full disk" else subprocess.PIPE
        process = subprocess.Popen(words, cwd=project, env=environment, stdout=given, stderr=given)
    if output == "dead reader":
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stderr.close()
    assert process.wait(180) == 0
    assert "questions" in read_yaml(project / "dvc.lock")["stages"]
    (log,) = (project / ".ril" / "logs").glob("dvc-*.log")
    assert "questions: done in" in log.read_text(), "nothing of the output is lost"


class Broken(StringIO):
    """An output with a fault of ours."""

    def write(self, text: str, /) -> int:
        raise ValueError("a fault")


def test_no_dvc_is_left_when_its_run_fails(make_repo: Callable[..., Path]) -> None:
    project = make_repo(MANY_QUESTIONS)
    with pytest.raises(ValueError, match="a fault"):
        dvc.run_repro(project, dvc.Targets(["questions"]), output=Broken())
    wait_until_gone(project, 1.0)


def test_a_stage_whose_dvc_has_died_before_it_started_ends(make_repo: Callable[..., Path]) -> None:
    """The shell ends at once, as a killed dvc; the stage starts when its parent is process 1 or another reaper."""
    project = make_repo()
    environment = {**os.environ, "PYTHONPATH": str(project), "DVC_STAGE": "questions"}
    command = f"(sleep 1; exec {sys.executable} -m flows.run questions 2> said) &"
    subprocess.run(["/bin/sh", "-c", command], cwd=project, env=environment, start_new_session=True, check=True)
    wait_until_gone(project, 90.0)
    assert (project / "said").is_file(), "the stage was started"
    assert not (project / "data" / "questions").exists()


LATE = """
import atexit, os, signal, sys
from flows.signals import cancel_alarms, end_well_on_signals
end_well_on_signals()
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))  # the second of two, as a group gets them
try:
    sys.exit(143)
finally:
    cancel_alarms()
"""


def test_a_signal_at_exit_prints_no_traceback(root: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", LATE], cwd=root, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, "")


def test_a_time_limit_ends_the_run(make_repo: Callable[..., Path]) -> None:
    project = make_repo(MANY_QUESTIONS)
    output = StringIO()
    assert dvc.run_repro(project, dvc.Targets(["questions"]), limit_hours=5 / 3600, output=output) == 124
    wait_until_gone(project, 1.0)


def test_a_stage_can_not_start_dvc(make_repo: Callable[..., Path], call: Call) -> None:
    code, _, err = call(make_repo(), "flows.cli", "run", "questions", DVC_STAGE="ril")
    assert code == 2
    assert "error: a stage (ril) may not start dvc" in err


def test_an_unknown_stage_is_answered_with_the_list(make_repo: Callable[..., Path], call: Call) -> None:
    code, _, err = call(make_repo(), "flows.cli", "run", "rill")
    assert code == 2
    assert "error: no stage 'rill'; stages: model, questions" in err
    assert "Traceback" not in err


TINY_BUILD = {"steps": 1, "vision_steps": 0, "reading_steps": 0, "rows_per_step": 2, "warmup_steps": 0}


@pytest.mark.slow
def test_stages_run_side_by_side_and_are_recorded(
    make_repo: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    project = make_repo({"models": {name: {"build": TINY_BUILD} for name in ("qwen2_5_vl", "internvl3")}})
    targets = ["model@qwen2_5_vl", "model@internvl3", "questions"]
    assert dvc.run_repro(project, dvc.Targets(targets), jobs=2, limit_hours=0.1) == 0
    shown = capfd.readouterr().out
    for target in targets:  # its name before each of its lines
        assert re.search(rf"^{target} +\| {target}: done in", shown, re.MULTILINE)
    assert set(read_yaml(project / "dvc.lock")["stages"]) == set(targets)
    assert dvc.run_repro(project, dvc.Targets(targets), jobs=2, limit_hours=0.1) == 0
    assert capfd.readouterr().out == "Data and pipelines are up to date.\n"


@pytest.mark.slow
def test_after_a_failure_nothing_that_needs_it_is_started(make_repo: Callable[..., Path]) -> None:
    broken = {"splits": {"test": 1}, "kind": "rows", "path": "mine.parquet"}
    project = make_repo({"questions": broken, "models": {"student": {"build": TINY_BUILD}}})
    (project / "mine.parquet").write_text("no parquet")
    output = StringIO()
    assert dvc.run_repro(project, dvc.Targets(["warm_start"]), jobs=2, limit_hours=0.1, output=output) not in (0, 124)
    assert "failed to reproduce 'questions'" in output.getvalue()
    assert not (project / "data" / "warm_start").exists()


def test_experiments_start_when_the_lock_is_free(root: Path, tmp_path: Path) -> None:
    """A form that is starting an experiment holds the lock; a source is asked for nothing before it is released."""

    class Once:
        asked: float | None = None

        @property
        def left(self) -> bool:
            return self.asked is None

        def next(self) -> None:
            self.asked = time.monotonic()

        def finish(self, *of: Any) -> None:
            """Nothing was started."""

    shutil.copy(root / "params.yaml", tmp_path)  # it says how long a stage has to end
    other, once = ExperimentLock(tmp_path), Once()
    assert other.acquire()
    start = time.monotonic()
    threading.Timer(1.0, other.release).start()
    assert dvc.run_experiments(tmp_path, once) == 0
    assert once.asked is not None
    assert once.asked - start >= 1.0
    assert other.acquire(), "the lock was released"
    other.release()

"""GPU slots: a stage that loads a model waits for one, says for whom, and gets it when its holder is gone, however it
went.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.jobs import open_job
from flows.slots import NoSlot, hold_gpu_slot
from stages.config.params import load_params
from stages.config.runtime import Runtime
from stages.job.job import Job
from stages.job.progress import Progress

HOLDER = """
import sys, time
from pathlib import Path
from flows.jobs import open_job
from flows.slots import hold_gpu_slot
from stages.config.params import load_params

root = Path(sys.argv[1])
with hold_gpu_slot(open_job("warm_start", None, root, load_params(root / "params.yaml"))):
    print("held", flush=True)
    time.sleep(600)
"""


class Said(Progress):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keeps the line."""
        self.lines.append(text)


@pytest.fixture
def project(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RIL_STORE", raising=False)
    return make_project({"runtime": {"gpu_slots": 1}})


@pytest.fixture
def holder(project: Path, root: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the only slot."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(project)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(30)


def job_of(project: Path, stage: str = "rollout") -> Job:
    return replace(open_job(stage, None, project, load_params(project / "params.yaml")), progress=Said())


def test_a_stage_waits_says_for_whom_and_goes_on_when_the_holder_is_killed(
    project: Path, holder: "subprocess.Popen[str]"
) -> None:
    job = job_of(project)
    with (
        pytest.raises(NoSlot, match=f"held by warm_start, process {holder.pid}"),
        hold_gpu_slot(job, limit_hours=1 / 3600),
    ):
        pytest.fail("the slot was taken")
    assert isinstance(job.progress, Said)
    assert job.progress.lines == [f"waiting for a GPU slot (runtime.gpu_slots is 1): warm_start, process {holder.pid}"]
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    with hold_gpu_slot(job, limit_hours=1 / 60):
        pass


def test_two_slots_serve_two(project: Path, holder: "subprocess.Popen[str]") -> None:
    job = job_of(project)
    began = time.monotonic()
    with hold_gpu_slot(replace(job, runtime=Runtime(gpu_slots=2)), limit_hours=1 / 60):
        assert time.monotonic() - began < 30


def test_a_stage_without_a_model_waits_for_nobody(project: Path, holder: "subprocess.Popen[str]") -> None:
    with hold_gpu_slot(job_of(project, "pool"), limit_hours=0):
        assert holder.poll() is None


def test_a_job_waits_for_nobody(
    project: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIL_JOB", str(project))
    with hold_gpu_slot(job_of(project), limit_hours=0):
        assert holder.poll() is None

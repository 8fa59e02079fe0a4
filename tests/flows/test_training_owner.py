"""The owner of a training state: who waits for whom, when a dead owner is recognised, and a stopped one that wakes up.

Two machines are played on one: the second has another kernel's id and does not see the first one's lock.
"""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from flows import training_owner
from flows.jobs import open_job
from flows.training_owner import own_training_state
from stages.config.params import load_params
from stages.job.failure import Failure
from stages.job.job import Job
from stages.job.progress import Progress

LIMIT = 60.0  # seconds; a starved machine takes 20 for what takes 4
# Owns the state, trains steps of 0.05 s with a checkpoint after each, and says what happens.
LOOP = """
import sys, time
from dataclasses import dataclass, replace
from pathlib import Path
from flows import training_owner
from flows.jobs import open_job
from stages.job.lock_files import make_native_lock
from stages.config.params import load_params
from stages.job.failure import Failure
from stages.training.state import TrainingState

project, kernel, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
training_owner._KERNEL = kernel
training_owner.make_native_lock = lambda path: make_native_lock(path.with_suffix(f".{kernel.name}"))
training_owner.BEAT_SECONDS = 0.2
training_owner.DEAD_SECONDS = 2.0
job = replace(open_job("warm_start", None, project, load_params(project / "params.yaml")), fingerprint="f" * 64)
try:
    with training_owner.own_training_state(job) as folder:
        state = TrainingState(replace(job, run_folder=folder), {})
        for step in state.iter_steps(steps, "loop"):
            time.sleep(0.05)
            state.record(step, {"by": kernel.name})
            if (project / "end").exists():
                break
except Failure as failure:
    print(failure, file=sys.stderr)
    sys.exit(3)
print("finished", file=sys.stderr)
"""


class Listening(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def project(make_project: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    for name, number in (("machine-a", 1), ("machine-b", 2)):
        (tmp_path / name).write_text(f"kernel {number}\n")
    return make_project({"runtime": {"checkpoint_minutes": 0.0}})


@pytest.fixture
def job(project: Path) -> Job:
    """A training stage's job, as the runner prepares it."""
    opened = open_job("warm_start", None, project, load_params(project / "params.yaml"))
    return replace(opened, fingerprint="f" * 64, progress=Listening())


@dataclass(frozen=True)
class Trainer:
    """A process that trains on one of the machines."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(project: Path, tmp_path: Path) -> Iterator[Callable[[str, int], Trainer]]:
    """Starts a process that trains on the machine of that name."""
    started: list[Trainer] = []

    def start_loop(machine: str, steps: int) -> Trainer:
        command = [sys.executable, "-c", LOOP, str(project), str(tmp_path / machine), str(steps)]
        log = tmp_path / f"{len(started)}.log"
        with log.open("wb") as output:
            started.append(Trainer(subprocess.Popen(command, stderr=output), log))
        return started[-1]

    yield start_loop
    for trainer in started:
        trainer.process.kill()
        trainer.process.wait()


def states(job: Job) -> list[Path]:
    return sorted((job.store / "runs" / "warm_start").iterdir())


def checkpoints(job: Job) -> list[str]:
    return sorted(path.parent.name for path in (job.store / "runs").glob("*/*/step_*/DONE"))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def said(job: Job) -> str:
    assert isinstance(job.progress, Listening)
    return "\n".join(job.progress.said)


# --- one machine ------------------------------------------------------------------------------------------------------


def test_the_second_waits_says_for_whom_and_starts_when_the_first_is_done(job: Job) -> None:
    order: list[str] = []

    def train_second() -> None:
        with own_training_state(replace(job, root=Path("/another/checkout"))):
            order.append("second")

    thread = threading.Thread(target=train_second)
    with own_training_state(job) as folder:
        assert folder is not None
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        thread.start()
        until(lambda: "waits for who trains this" in said(job))
        assert f"process {os.getpid()} of " in said(job)
        assert f"in {job.root}, since " in said(job)
        order.append("first")
    thread.join(LIMIT)
    assert order == ["first", "second"]
    assert not states(job)
    assert not list((job.store / "owners").iterdir()), "nothing is left of owners that are done"


@pytest.mark.slow
def test_a_killed_owner_is_followed_at_once_and_its_state_is_used(
    job: Job, start: Callable[[str, int], Trainer]
) -> None:
    first = start("machine-a", 1000)
    until(lambda: checkpoints(job))
    first.process.kill()
    first.wait()
    second = start("machine-a", 1)
    assert second.wait() == 0
    assert "resumes after step" in second.said()
    assert "waits for" not in second.said()
    assert not states(job)


def test_nobody_waits_for_ever_for_an_owner_that_is_stopped(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_owner, "STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(training_owner, "BEAT_SECONDS", 600.0)  # as if this process stood still
    stopped = pytest.raises(Failure, match="so it is stopped; continue it with kill -CONT")
    with own_training_state(job), stopped, own_training_state(job):
        pytest.fail("two owners at once")


# --- two machines -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_owner_that_wakes_up_after_a_takeover_ends_and_changes_nothing(
    job: Job, start: Callable[[str, int], Trainer]
) -> None:
    first = start("machine-a", 1000)
    until(lambda: checkpoints(job))
    first.process.send_signal(signal.SIGSTOP)
    second = start("machine-b", 1000)
    until(lambda: [state.name for state in states(job)] == ["f" * 16 + "-2"])
    (state,) = states(job)
    until(lambda: "resumes after step" in second.said())
    before = checkpoints(job)
    until(lambda: checkpoints(job)[-1] > before[-1])
    first.process.send_signal(signal.SIGCONT)
    assert first.wait() == 3
    assert "another process has taken over the training state in " in first.said()
    before = checkpoints(job)
    until(lambda: checkpoints(job)[-1] > before[-1])  # the second trains on undisturbed
    assert states(job) == [state]
    (record,) = (job.store / "owners").glob("*.json")
    assert json.loads(record.read_text())["process"] == second.process.pid


@pytest.mark.slow
def test_a_living_owner_on_another_machine_is_waited_for(
    project: Path, job: Job, start: Callable[[str, int], Trainer]
) -> None:
    first = start("machine-a", 100_000)
    until(lambda: checkpoints(job))
    second = start("machine-b", 2)
    until(lambda: "waits for who trains this" in second.said())
    time.sleep(2.5)  # more than an owner may be silent for here
    assert "takes over" not in second.said()
    assert first.process.poll() is None
    (project / "end").touch()
    assert (first.wait(), second.wait()) == (0, 0)
    assert "resumes after step" not in second.said(), "the first has finished, and its state is gone"


# --- private to its user ----------------------------------------------------------------------------------------------


def make_state(job: Job) -> Path:
    state = job.store / "runs" / "warm_start" / ("f" * 16)
    (state / "step_00000001").mkdir(parents=True)
    return state


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_state_that_others_could_write_is_refused(job: Job, mode: int) -> None:
    state = make_state(job)
    state.chmod(mode)
    refused = pytest.raises(Failure, match=rf"could have been written by other users \(mode {mode:o}\); delete it")
    with refused, own_training_state(job):
        pytest.fail("it was used")
    state.chmod(0o755)  # of an earlier version
    with own_training_state(job) as folder:
        assert folder == state
        assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_link_in_place_of_a_state_is_not_followed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = job.store / "runs" / "warm_start" / ("f" * 16)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="could have been written by other users"), own_training_state(job):
        pytest.fail("it was used")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_another_users_state_is_left_alone(job: Job) -> None:
    state = make_state(job)
    os.chown(state, 12345, 12345)
    with own_training_state(job) as folder:
        assert folder is not None
        assert folder.name == "f" * 16 + "-2"
        assert "is private to user 12345" in said(job)


def test_a_store_that_is_not_writable_is_said_before_training(job: Job) -> None:
    job.store.write_text("a file")
    refused = pytest.raises(Failure, match=r"no training state can be kept in .*store .*make it writable")
    with refused, own_training_state(job):
        pytest.fail("it was used")


@pytest.mark.parametrize("full_from", [1, 2])
def test_a_full_disk_leaves_no_part_of_a_record(job: Job, monkeypatch: pytest.MonkeyPatch, full_from: int) -> None:
    written = []

    def write(place: training_owner._Place, path: Path) -> None:
        written.append(path)
        path.write_text("{}" if len(written) >= full_from else json.dumps(asdict(place.me)))
        if len(written) >= full_from:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_owner._Place, "_write_record", write)
    ended = pytest.raises(OSError, match="No space") if full_from == 1 else pytest.raises(Failure, match="step 3")
    with ended, own_training_state(job):
        raise Failure("step 3 went wrong")
    assert len(written) == full_from
    assert not list(job.store.rglob("*.partial"))


def test_stages_that_do_not_train_leave_nothing(project: Path) -> None:
    opened = open_job("teacher", "internvl3", project, load_params(project / "params.yaml"))
    with own_training_state(replace(opened, fingerprint="f" * 64)) as folder:
        assert folder is None
    assert not opened.store.exists()

"""Checkpoints that are written while the next steps compute: what they hold, what waits for them, how writing ends."""

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import signals
from flows.work import Work
from stages.job.progress import Progress
from stages.job.stop import STOP
from stages.training import background
from stages.training.background import BackgroundWriter, HostCopies
from stages.training.fragments import VALUES, Fragment
from stages.training.state import TrainingState, list_complete_checkpoints
from stages.training.trainer import Trainer
from tests.stages.training.test_state import stop_after


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    for name, value in (("code", None), ("asked", None), ("save_seconds", 0.0)):
        monkeypatch.setattr(STOP, name, value)


def train(project: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trains the discriminator up to the stop; returns the folder of its checkpoints."""
    monkeypatch.setenv("RIL_STORE", str(store))
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit):
        Work("discriminator", None, project).run(Progress())
    STOP.code = STOP.asked = None
    return next((store / "runs" / "discriminator").iterdir())


def _wait(event: threading.Event) -> None:
    event.wait(60.0)


def read_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "recorded" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_step_computes_while_the_one_before_is_written_and_changes_nothing_of_it(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each write begins after the update of the next step. With too little memory steps wait; same files."""
    write, step, updates, behind = Trainer.save_state, Trainer.step, list[float](), list[bool]()

    def save(self: Trainer, folder: Path, name: str, state: Any = None) -> None:
        number, limit = int(folder.name.split(".")[1].removeprefix("step_")), time.monotonic() + 20.0
        while len(updates) <= number and STOP.code is None and time.monotonic() < limit:
            time.sleep(0.002)
        behind.append(len(updates) > number)
        write(self, folder, name, state)

    def update(self: Trainer, rate: float) -> Any:
        done = step(self, rate)
        updates.append(done.loss)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_state", save)
        patch.setattr(Trainer, "step", update)
        stop_after(3, patch)
        written_behind = read_all(train(training_project, tmp_path / "behind", patch))
    assert behind == [True, True, False], "the last one, after the request to stop, has no next step"
    assert "written while training waits" not in capfd.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr(background, "measure_free_memory", lambda: 1000)
        stop_after(3, patch)
        written_between = read_all(train(training_project, tmp_path / "between", patch))
    assert capfd.readouterr().err.count("warning: checkpoints are written while training waits: copies of the") == 1
    assert written_behind == written_between
    assert {Path(name).parts[0] for name in written_behind} == {"step_00000002", "step_00000003"}


def test_a_write_that_fails_ends_the_stage_with_its_reason(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seen at the end of the next step at the latest; what was written before stays."""
    write, calls = Trainer.save_state, []

    def save(self: Trainer, folder: Path, name: str, state: Any = None) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise OSError(5, "Input/output error", str(folder))
        write(self, folder, name, state)

    monkeypatch.chdir(training_project)
    monkeypatch.setattr(Trainer, "save_state", save)
    with pytest.raises(OSError, match="Input/output error"):
        Work("discriminator", None, training_project).run(Progress())
    (folder,) = (tmp_path / "store" / "runs" / "discriminator").iterdir()
    assert [path.name for path in list_complete_checkpoints(folder)] == ["step_00000001", "step_00000002"]
    assert not list(folder.glob(".step*"))
    assert len(calls) == 3
    monkeypatch.setattr(Trainer, "save_state", write)
    Work("discriminator", None, training_project).run(Progress())
    assert "resumes after step 2" in capfd.readouterr().err


def test_after_a_request_to_stop_the_checkpoint_in_flight_comes_first(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is time for it, but not for another one."""
    original = TrainingState._finish_step

    def finish(self: TrainingState, done: int, count: int) -> None:
        if done == 4:
            STOP.ask(143)
            self._writer.await_end()
            STOP.save_seconds = 20.0  # of 25 s, 10 are for the end
        original(self, done, count)

    monkeypatch.setattr(TrainingState, "_finish_step", finish)
    folder = train(training_project, tmp_path / "store", monkeypatch)
    assert [path.name for path in list_complete_checkpoints(folder)] == ["step_00000002", "step_00000003"]
    assert not list(folder.glob(".step*"))


def test_nothing_waits_for_a_write_longer_than_a_request_to_stop_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    writer = BackgroundWriter()
    writer.start(lambda: _wait(ended), contextlib.ExitStack(), lambda: None)
    monkeypatch.setattr(background, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(STOP, "grace_seconds", 5.0)
    monkeypatch.setattr(STOP, "asked", time.monotonic() - 1.8)  # of 5 s, 3 are for the end
    begun = time.monotonic()
    assert not writer.finish()
    assert 0.1 < time.monotonic() - begun < 2.0
    ended.set()
    monkeypatch.setattr(STOP, "asked", None)
    assert writer.finish()


def test_an_alarm_does_not_interrupt_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []
    monkeypatch.setattr(signal, "setitimer", lambda _, seconds: timers.append(seconds))
    monkeypatch.setattr(signals, "_first", [])
    monkeypatch.setattr(STOP, "save_seconds", 2.0)
    with STOP.awaiting():
        signals._stop(signal.SIGTERM, None)
        with STOP.completing():
            signals._stop(signal.SIGALRM, None)
        assert timers == [12.0, 0.5], "it comes again, in case nothing ends the process"
        with pytest.raises(SystemExit):
            signals._stop(signal.SIGALRM, None)


def test_copies_keep_their_values_and_their_memory() -> None:
    values = {kind: torch.arange(4.0) + place for place, kind in enumerate(VALUES)}
    fragments = [Fragment("a", 0, values, torch.tensor(1.0)), Fragment("b", 2, values, torch.tensor(3.0))]
    copies = HostCopies(print)
    first = copies.take({"model": fragments})
    assert first is not None
    for tensor in [*values.values(), *(one.updates for one in fragments)]:
        tensor.zero_()
    assert [(one.name, one.start, float(one.updates)) for one in first["model"]] == [("a", 0, 1.0), ("b", 2, 3.0)]
    for one in first["model"]:
        assert all(torch.equal(one.values[kind], torch.arange(4.0) + place) for place, kind in enumerate(VALUES))
    second = copies.take({"model": fragments})
    assert second is not None
    places = [[one.values[VALUES[0]].data_ptr() for one in taken["model"]] for taken in (first, second)]
    assert places[0] == places[1], "no second time as much memory"


@pytest.mark.parametrize(("free", "fits"), [(999, False), (1000, True)])
def test_copies_take_four_fifths_of_the_free_memory(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "measure_free_memory", lambda: free)
    part = Fragment("a", 0, {"weight": torch.zeros(200)}, torch.tensor(0.0))  # 800 bytes
    assert (HostCopies(lambda _: None).take({"model": [part]}) is not None) == fits

"""Full disks: what training says, what it keeps, and that curves do not stop it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.work import Work
from stages.job.failure import Failure
from stages.job.progress import Progress
from stages.job.stop import STOP
from stages.training import room, state
from stages.training.state import TrainingState, list_complete_checkpoints
from stages.training.tensorboard import TensorBoardWriter


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(STOP, "code", None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB; only root can make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system of 12 MB: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_training_in_one_line(
    training_project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The room is measured as plenty, as another process may take it between the check and the write."""
    monkeypatch.setenv("RIL_STORE", str(small_disk))
    monkeypatch.chdir(training_project)
    monkeypatch.setattr(TrainingState, "_check_room", lambda self, folder: None)
    original, ballast = TrainingState._save, small_disk / "ballast"

    def save(self: TrainingState, folder: Path, done: int) -> None:
        if done == 3:
            ballast.write_bytes(bytes(room.measure_free(small_disk) - 300_000))
        original(self, folder, done)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "_save", save)
        with pytest.raises(Failure) as failure:
            Work("discriminator", None, training_project).run(Progress())
    assert "no room for a checkpoint in " in str(failure.value)
    assert "the last good checkpoint stays and is resumed from: " in str(failure.value)
    assert "\n" not in str(failure.value)
    (folder,) = (small_disk / "runs" / "discriminator").iterdir()
    assert [path.name for path in list_complete_checkpoints(folder)] == ["step_00000001", "step_00000002"]
    assert not list(folder.glob(".step*"))
    ballast.unlink()
    Work("discriminator", None, training_project).run(Progress())
    assert "resumes after step 2" in capfd.readouterr().err


def test_too_little_room_is_said_at_the_start_and_before_a_checkpoint(
    training_project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(training_project)
    monkeypatch.setattr(state, "measure_free", lambda folder: 1000)
    monkeypatch.setattr(room, "measure_free", lambda folder: 1000)
    with pytest.raises(Failure, match=r"no room for a checkpoint in .* needed, 0.0 MiB free.; nothing of this run is"):
        Work("discriminator", None, training_project).run(Progress())
    assert "warning: discriminator: 0.0 MiB free in " in capfd.readouterr().err


@pytest.mark.parametrize("archive", [False, True])
def test_every_way_of_saving_tensors_tells_a_full_disk(small_disk: Path, archive: bool) -> None:
    with pytest.raises(Failure, match="no room"), room.explain_full_disk(small_disk, lambda: "all is kept"):
        torch.save(torch.zeros(5_000_000), small_disk / "state.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(Failure, match="no room"), room.explain_full_disk(small_disk, lambda: "all is kept"):
        state.save_tensors({"weight": torch.zeros(5_000_000)}, small_disk / "state.safetensors")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room.explain_full_disk(tmp_path, lambda: "all is kept"):
        raise PermissionError("no")


def test_curves_that_cannot_be_written_cost_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "a file").touch()
    board = TensorBoardWriter(tmp_path / "a file" / "curves", {}, 0, said.append)
    board.write({"history": [{"step": 1, "loss": 1.0}]})
    board.close()
    assert len(said) == 1
    assert said[0].endswith("Not a directory; training goes on")


def test_curves_on_a_disk_that_fills_up_cost_a_warning(small_disk: Path) -> None:
    said: list[str] = []
    rows = [{"step": step, "loss": 1.0} for step in range(200)]
    board = TensorBoardWriter(small_disk / "curves", {}, 0, said.append)
    (small_disk / "ballast").write_bytes(bytes(room.measure_free(small_disk)))
    board.write({"history": rows})
    board.close()
    assert len(said) == 1
    assert said[0].endswith("No space left on device; training goes on")
    assert (small_disk / "ballast").stat().st_size > 10_000_000

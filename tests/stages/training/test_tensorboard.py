"""Event files for TensorBoard: what is in them, and that a resumed run shows one curve."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event, SessionLog

from flows.work import Work
from stages.config.yaml import read_yaml
from stages.job.progress import Progress
from stages.job.stop import STOP
from stages.trackers import trackers
from stages.trackers.tracked_run import TrackedRun
from stages.training.state import TrainingState
from stages.training.tensorboard import TensorBoardWriter


def events(folder: Path) -> list[Event]:
    """All events of a run in the order of their files (TFRecord: length, its checksum, data, its checksum)."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them: an event that starts a session takes away what earlier ones say of later
    steps.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            curves = {tag: [point for point in points if point[0] < event.step] for tag, points in curves.items()}
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def test_rows_become_scalars_under_the_names_of_the_columns(tmp_path: Path) -> None:
    records: dict[str, list[dict[str, Any]]] = {"history": [], "samples": [{"step": 1, "response": "28"}]}
    board = TensorBoardWriter(tmp_path, records, 0)
    records["history"] += [{"step": 1, "rewards/t/answer": 0.5, "disc/loss": float("nan"), "judge/failed": None}]
    board.write(records)
    records["history"] += [{"step": 2, "rewards/t/answer": 0.25, "disc/loss": 2.0, "judge/failed": 0}]
    records["validation"] = [{"step": 2, "validation": 0.75}]
    board.write(records)
    board.close()
    curves = shown(tmp_path)
    assert [math.isnan(value) for _, value in curves.pop("disc/loss")] == [True, False], "NaN is shown"
    assert curves == {
        "rewards/t/answer": [(1, 0.5), (2, 0.25)],
        "judge/failed": [(2, 0.0)],
        "validation": [(2, 0.75)],
    }


def test_a_run_without_fingerprint_writes_nothing(tmp_path: Path) -> None:
    board = TensorBoardWriter(None, {}, 0)
    board.write({"history": [{"step": 1, "loss": 1.0}]})
    board.close()
    assert not list(tmp_path.iterdir())


def test_a_resumed_stage_goes_on_with_its_curve(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies in step 6 after a checkpoint of step 4: what it wrote of steps 5 and 6 gives way; afresh, all of it does."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(STOP, "code", None)
    monkeypatch.chdir(training_project)
    original = TrainingState._save

    def save(self: TrainingState, folder: Path, done: int) -> None:
        if done <= 4:
            original(self, folder, done)
        if done == 6:
            raise ConnectionResetError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "_save", save)
        with pytest.raises(ConnectionResetError):
            Work("discriminator", None, training_project).run(Progress())
    (folder,) = (tmp_path / "store/tensorboard/discriminator").iterdir()
    assert [step for step, _ in shown(folder)["loss"]] == [1, 2, 3, 4, 5, 6]
    Work("discriminator", None, training_project).run(Progress())
    curves = shown(folder)
    assert {tag: [step for step, _ in points] for tag, points in curves.items()} == {
        tag: list(range(1, 13)) for tag in ("loss", "accuracy", "grad_norm")
    }
    assert not list(training_project.glob("data/**/events*")) + list(training_project.glob("reports/**/events*"))
    Work("discriminator", None, training_project).run(Progress())
    assert shown(folder) == curves
    assert len(list(folder.iterdir())) == 1


class Recorder:
    """A tracker that keeps what it is told, by run."""

    runs: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, run: TrackedRun) -> None:
        self.told: dict[str, Any] = {"run": run, "steps": [], "finished": None}
        self.runs.append(self.told)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told["steps"].append((step, values["loss"]))

    def log_table(self, step: int, rows: Any, images: Any) -> None:
        raise AssertionError("this stage has no samples")

    def close(self, finished: bool) -> None:
        self.told["finished"] = finished


def test_a_resumed_stage_gives_trackers_one_curve(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above: the run that goes on replaces the other one and has every step once."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-one")
    monkeypatch.setattr(STOP, "code", None)
    monkeypatch.chdir(training_project)
    monkeypatch.setattr(trackers, "OPENERS", {"wandb": Recorder})
    monkeypatch.setattr(Recorder, "runs", [])
    values = read_yaml(training_project / "params.yaml") | {"tracking": {"tools": ["wandb"], "project": "mine"}}
    (training_project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    original = TrainingState._save

    def save(self: TrainingState, folder: Path, done: int) -> None:
        if done <= 4:
            original(self, folder, done)
        if done == 6:
            raise ConnectionResetError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "_save", save)
        with pytest.raises(ConnectionResetError):
            Work("discriminator", None, training_project).run(Progress())
    Work("discriminator", None, training_project).run(Progress())
    first, second = Recorder.runs
    assert [step for step, _ in first["steps"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in second["steps"]] == list(range(1, 13))
    assert second["steps"][:6] == first["steps"]
    assert [first["finished"], second["finished"]] == [False, True]
    run = second["run"]
    assert (run.name, run.project, run.group, run.id) == ("discriminator", "mine", "tiny-one", first["run"].id)
    assert run.id.startswith("discriminator-")
    assert run.settings["discriminator.steps"] == 12
    assert not (tmp_path / "store/tensorboard").exists(), "it is not among the tools"

"""A tracker that is not there, fails or hangs costs a warning, never the run."""

import importlib.util
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.trackers import trackers as module
from stages.trackers.tracked_run import TrackedRun
from stages.trackers.trackers import Trackers

RUN = TrackedRun("ril", "ril-0", "tests", None, {}, Path("store"), Path())


class Recorder:
    """A tracker that writes down its calls, and fails or hangs in a step."""

    calls: list[Any]
    fails: int | None = None
    hangs: int | None = None
    released = threading.Event()

    def __init__(self, run: TrackedRun) -> None:
        type(self).calls = [run.name]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails:
            raise ConnectionError("no\nserver")
        if step == self.hangs:
            self.released.wait(30)
        self.calls.append((step, dict(values)))

    def log_table(self, step: int, rows: Sequence[Any], images: Sequence[Any]) -> None:
        self.calls.append((step, len(rows), list(images)))

    def close(self, finished: bool) -> None:
        self.calls.append(finished)


def run_steps(count: int, seconds: float = 10.0) -> list[str]:
    said: list[str] = []
    trackers = Trackers(["wandb"], RUN, True, said.append)
    rows: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        rows.append({"step": step, "loss": 1.0 / step})
        trackers.write({"history": rows}, {})
    trackers.close(True, seconds)
    return said


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Recorder", (Recorder,), {})
    monkeypatch.setattr(module, "OPENERS", {"wandb": kind})
    return kind


def test_rows_are_sent_once_in_order(recorder: type[Recorder]) -> None:
    assert run_steps(3) == []
    assert recorder.calls == ["ril", (1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1 / 3}), True]


def test_a_tracker_that_fails_is_said_once(recorder: type[Recorder]) -> None:
    recorder.fails = 2
    assert run_steps(5) == ["warning: no more curves in wandb: ConnectionError: no server; training goes on"]
    assert recorder.calls == ["ril", (1, {"loss": 1.0})]


def test_a_tracker_that_hangs_holds_up_no_step_and_not_the_end(recorder: type[Recorder]) -> None:
    recorder.hangs = 1
    begun = time.monotonic()
    said = run_steps(1000, seconds=0.5)
    assert time.monotonic() - begun < 5
    recorder.released.set()
    assert said == ["warning: tracker wandb has not finished after 0 s; its curves may lack steps"]


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def open_missing(run: TrackedRun) -> Recorder:
        raise ImportError("No module named 'wandb'")

    monkeypatch.setattr(module, "OPENERS", {"wandb": open_missing})
    assert run_steps(2) == [
        "warning: no curves in wandb: No module named 'wandb'; install the extra: pip install -e '.[wandb]'"
    ]


@pytest.mark.parametrize("tool", ["wandb", "mlflow", "dvclive"])
def test_without_the_extra_training_goes_on(tool: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec(tool) is not None:
        pytest.skip(f"{tool} is installed")
    said: list[str] = []
    run = TrackedRun("ril", "ril-0", "tests", None, {}, tmp_path / "store", tmp_path)
    trackers = Trackers([tool], run, True, said.append)
    trackers.close(True)
    assert len(said) == 1
    assert f"pip install -e '.[{tool}]'" in said[0]


def validate(root: Path, tracking: dict[str, Any]) -> Params:
    return validate_params(merge_params(read_yaml(root / "params.yaml"), {"tracking": tracking}))


def test_tracking_is_no_parameter_of_any_stage(root: Path) -> None:
    """So no choice of a tracker makes a stage stale."""
    default = validate(root, {})
    assert default.tracking.tools == ("tensorboard",)
    other = validate(root, {"tools": ["wandb", "mlflow"], "project": "mine", "tables": False, "mlflow_uri": "file:x"})
    for stage in ("ril", "warm_start", "report"):
        assert open_job(stage, None, root, default).values == open_job(stage, None, root, other).values
    with pytest.raises(ParamsError, match=r"tracking.tools.0 = 'comet': Input should be 'tensorboard', 'wandb'"):
        validate(root, {"tools": ["comet"]})

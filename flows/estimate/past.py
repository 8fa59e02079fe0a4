"""What stages took when they last ran on this machine, and what was measured on it (`ril plan --measure`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.job.bounded import UnusableFile, parse_json, read_bounded

_MOST_BYTES = 1 << 20
MACHINES = "machines"  # folder in the store: one file a machine


@dataclass(frozen=True)
class PastRun:
    """The last run of a stage here, from its timing.json."""

    seconds: float
    steps: int  # that were made in that run
    step_seconds: float  # of all of them
    step_flops: float  # of one, as planned then
    generated: int  # answers
    generate_seconds: float
    tokens_out: int
    prompts: int  # tokens of prompts that were read
    took: Mapping[str, Any]
    planned: Mapping[str, Any]


def read_past(root: Path, run: str, machine: str) -> PastRun | None:
    """Returns the last run of `run` on `machine`; None if there was none, or on another machine."""
    values = _read(root / "reports" / Path(*run.split("@")) / "timing.json")
    if values is None or values.get("machine") != machine:
        return None
    steps, planned = values.get("steps", {}), values.get("planned", {})
    paid = [one for one in values.get("paid", {}).values() if one.get("generated")]
    return PastRun(
        float(values["seconds"]),
        int(steps.get("done", 0)),
        float(steps.get("seconds", 0.0)),
        float(planned.get("step_flops", 0.0)),
        sum(int(one["generated"]) for one in paid),
        sum(float(one["seconds"]) for one in paid),
        sum(int(one["completion_tokens"]) for one in paid),
        sum(int(one["prompt_tokens"]) for one in paid),
        values.get("took", {}),
        planned,
    )


@dataclass(frozen=True)
class Calibration:
    """What a short run measured on a machine."""

    train_flops: float  # a second and process, of a Trainer
    step_seconds: float  # of a step beside its arithmetic
    train_start_seconds: float
    token_seconds: float  # of a generated token beside its arithmetic, with many answers at a time
    engine_flops: float  # a second
    engine_start_seconds: float

    def to_json(self) -> dict[str, float]:
        """Returns the fields by name."""
        return dict(vars(self))


def read_calibration(store: Path, machine: str) -> Calibration | None:
    """Returns what `ril plan --measure` kept for `machine`; None without it."""
    values = _read(store / MACHINES / f"{machine}.json")
    names = Calibration.__dataclass_fields__
    return None if values is None else Calibration(**{name: float(values[name]) for name in names})


def _read(file: Path) -> dict[str, Any] | None:
    """Returns the object in `file`; None if there is none, or it is not one: a plan can do without it."""
    if not file.is_file():
        return None
    try:
        values = parse_json(read_bounded(file, _MOST_BYTES))
    except UnusableFile:
        return None
    return values if isinstance(values, dict) else None

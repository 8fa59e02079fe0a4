"""What a filled-in form asks for: a run in the workspace, or an experiment with other values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.profile import Change, as_overrides, differences, read_profile
from flows.ui.forms import NO_PROFILE, PIPELINE
from stages.config.block import Block
from stages.config.params import Params, validated
from stages.config.table import STAGES
from stages.config.yaml import ParamsError, merged, read_yaml


@dataclass(frozen=True)
class Plan:
    """One run of one target."""

    targets: tuple[str, ...]  # for DVC; empty means all stages
    changes: tuple[Change, ...]  # against params.yaml; none: the run is in the workspace

    @property
    def overrides(self) -> list[str]:
        """The changes as arguments of `dvc exp run -S`."""
        return as_overrides(list(self.changes))


def planned(root: Path, target: str, settings: Mapping[str, Any], profile: str = NO_PROFILE) -> Plan:
    """The plan for `settings` (as in params.yaml; what is left out stays as it is there) laid over `profile`.

    Raises ParamsError, one line for each mistake, when the target is unknown or the values can't be used together.
    """
    if target != PIPELINE and target.split("@")[0] not in STAGES:
        raise ParamsError(f"no stage {target!r}; stages: {', '.join(STAGES)}")
    before = read_yaml(root / "params.yaml")
    current = validated(before)
    base = before if profile == NO_PROFILE else merged(before, read_profile(root, profile))
    after = merged(base, _overlay(current, settings))
    validated(after, "the form")
    return Plan(() if target == PIPELINE else (target,), tuple(differences(before, after)))


def _overlay(current: Params | Block | Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What differs in `given` from `current`, defaults of `current` included; None deletes."""
    overlay: dict[str, Any] = {}
    for key, value in given.items():
        now = current.get(key) if isinstance(current, Mapping) else getattr(current, key, None)
        if isinstance(value, Mapping) and isinstance(now, Block | Mapping) and _holds_blocks(now):
            if inner := _overlay(now, value):
                overlay[key] = inner
        elif isinstance(value, Mapping) and isinstance(
            now, Mapping
        ):  # free names, such as styles: one left out is gone
            if value != now:
                overlay[key] = {name: value.get(name) for name in (*value, *now)}
        elif value != (list(now) if isinstance(now, tuple) else now):
            overlay[key] = value
    return overlay


def _holds_blocks(value: Any) -> bool:
    return isinstance(value, Block) or (
        isinstance(value, Mapping) and any(isinstance(inner, Block) for inner in value.values())
    )

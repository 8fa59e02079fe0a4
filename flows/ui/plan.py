"""What a filled-in form asks for: a run in the workspace, or an experiment with other values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.copies import check_copies
from flows.jobs import list_needed_jobs
from flows.profile import Change, find_differences, format_overrides, read_profile
from flows.ui.forms import NO_PROFILE, PIPELINE, check_values, make_forms
from stages.config.block import Block
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml


@dataclass(frozen=True)
class RunPlan:
    """One run of one target."""

    targets: tuple[str, ...]  # for DVC; empty means all stages
    changes: tuple[Change, ...]  # against params.yaml; none: the run is in the workspace
    params: Params  # with the changes

    @property
    def overrides(self) -> list[str]:
        """The changes as arguments of `dvc exp run -S`."""
        return format_overrides(list(self.changes))


def check_project(root: str) -> None:
    """Raises ParamsError when a form for the project in `root` runs in a process of another project."""
    if root != str(Path.cwd()):
        raise ParamsError(f"this form was made for the project in {root[:200]!r}, and this process serves {Path.cwd()}")


def make_plan(root: Path, target: str, settings: Mapping[str, Any], profile: str = NO_PROFILE) -> RunPlan:
    """The plan for `settings` (as in params.yaml; what is left out stays as it is there) laid over `profile`.

    Raises ParamsError, one line for each mistake, when the target is unknown, its form does not offer such values, they
    can't be used together, or an experiment would lack users' files; GitError when there is no repository for an
    experiment.
    """
    forms = {form.target: form for form in make_forms(root)}
    if target not in forms:
        raise ParamsError(f"no stage {target[:100]!r}; stages: {', '.join(forms)}")
    check_values(forms[target], {"settings": settings, "profile": profile})
    before = read_yaml(root / "params.yaml")
    current = validate_params(before)
    base = before if profile == NO_PROFILE else merge_params(before, read_profile(root, profile))
    after = merge_params(base, _find_overlay(current, settings))
    params = validate_params(after, "the form")
    plan = RunPlan(() if target == PIPELINE else (target,), tuple(find_differences(before, after)), params)
    if plan.changes:
        check_copies(root, list_needed_jobs(root, params, plan.targets))
    return plan


def _find_overlay(current: Params | Block | Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What differs in `given` from `current`, defaults of `current` included; None deletes."""
    overlay: dict[str, Any] = {}
    for key, value in given.items():
        now = current.get(key) if isinstance(current, Mapping) else getattr(current, key, None)
        if isinstance(value, Mapping) and isinstance(now, Block | Mapping) and _holds_blocks(now):
            if inner := _find_overlay(now, value):
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

"""Which stages would run, by DVC's own comparison."""

from dataclasses import replace
from pathlib import Path

from flows.dvc.staleness import FOLLOWS, STALE, UP_TO_DATE, StageStatus, compare_stages
from flows.estimate.plan import Plan

NOT_COMPARED = "runs"


def add_states(plan: Plan, root: Path, store: Path, as_planned: bool) -> Plan:
    """Returns the plan with what DVC says of each run.

    Without a DVC project, and for a profile that is not in params.yaml, everything is to run. Raises DvcFailed.
    """
    if not as_planned or not (root / ".dvc").is_dir():
        return replace(plan, stages=[replace(one, state=NOT_COMPARED) for one in plan.stages])
    found = compare_stages(root, store)
    return replace(
        plan,
        stages=[
            replace(one, state=_explain(found[one.run]), runs=found[one.run].state != UP_TO_DATE)
            if one.run in found
            else replace(one, state=NOT_COMPARED)
            for one in plan.stages
        ],
    )


def _explain(status: StageStatus) -> str:
    """Returns a few words; `ril status` has all of them."""
    if status.state == FOLLOWS:
        return f"after {status.follows[0]}"
    if status.state != STALE:
        return status.state
    if status.parameters:
        return f"{len(status.parameters)} parameters changed" if len(status.parameters) > 1 else "parameter changed"
    if status.inputs:
        return "input changed"
    if status.outs:
        return "result missing"
    return "words changed" if status.words_only else "code changed"

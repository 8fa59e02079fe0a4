"""Which stages would run, by DVC's own comparison."""

from dataclasses import replace
from pathlib import Path

from flows.dvc.staleness import STALE, UP_TO_DATE, StageStatus, compare_stages
from flows.estimate.plan import PipelinePlan

NOT_COMPARED = "runs"


def add_states(plan: PipelinePlan, root: Path, store: Path, as_planned: bool) -> PipelinePlan:
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
    """Returns one word, of what changed first; `ril status` says everything."""
    if status.state != STALE:
        return status.state
    causes = {"parameter": status.parameters, "input": status.inputs, "result": status.outs, "command": status.command}
    return next((word for word, found in causes.items() if found), "words" if status.words_only else "code")

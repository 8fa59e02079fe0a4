"""Which models each run generates answers with: what decides on engines, keys of endpoints, GPUs and prices."""

from typing import TYPE_CHECKING

from stages.config.benchmarks import TINY_BENCHMARKS
from stages.config.placement import LOOP

if TYPE_CHECKING:
    from stages.config.params import Params

_RULED = {*TINY_BENCHMARKS} - {"tiny_judged"}  # benchmarks that rules score alone


def list_used_models(params: "Params", run: str) -> list[str]:
    """Returns the entries of `models` that `run` (such as `teacher@gpt`) may generate answers with.

    `student` stands for every checkpoint that is trained here, as in `runtime.engines`.
    """
    stage, _, item = run.partition("@")
    selection, objective = params.selection, params.objective
    if stage == "selection" and selection.top:
        return list(dict.fromkeys([selection.teacher, "student"]))
    if stage == "teacher":
        return [params.teachers[item].model]
    if stage == "verdict":
        return [params.verdict.model]
    if stage == "rollout":
        return ["student"]
    if stage == LOOP:
        judges = objective.asks_judge
        return ["student", *([params.verdict.model] if judges else []), *params.distilled_models]
    if stage == "evaluate":
        return list(dict.fromkeys([_find_evaluated(params, item), *_list_judges(params)]))
    return []


def _find_evaluated(params: "Params", item: str) -> str:
    folder, _, name = params.evaluations[item].checkpoint.rpartition("/")
    return name if folder == "data/model" and name in params.models else "student"


def _list_judges(params: "Params") -> list[str]:
    needed = params.evaluate.scoring == "rules_and_judge" or set(params.evaluate.benchmarks) - _RULED
    return [params.evaluate.judge] if needed else []

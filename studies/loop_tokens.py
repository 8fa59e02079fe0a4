"""Tokens of a loop: what the student wrote, and what else it was trained on."""

import math
from collections.abc import Mapping, Sequence

from stages.config.params import Params
from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names

SAMPLED, READ = "sampled", "read"


def count_arm_tokens(curves: Mapping[str, Sequence[float]], params: Params) -> dict[str, float]:
    """Tokens that the student wrote in the loop, and tokens of other answers that it was trained on.

    Mean lengths by step times the rows of a step; rows that lost their verdict count with the mean length, too.
    """
    ril, objective = params.ril, params.objective
    rows = ril.questions_per_step * ril.group
    found = {SAMPLED: rows * _add_lengths(curves, STUDENT)} if objective.samples else {}
    if objective.teacher_rows != "none":
        read = ril.questions_per_step if objective.references else rows
        found[READ] = read * _add_lengths(curves, TEACHERS)
    return {name: round(value) for name, value in found.items()}


def _add_lengths(curves: Mapping[str, Sequence[float]], source: str) -> float:
    return sum(value for value in curves.get(names.LENGTH.format(source), ()) if math.isfinite(value))

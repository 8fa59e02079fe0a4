"""The run in a dozen numbers: reports/report/metrics.json, the columns of `dvc exp show` by which experiments are
compared.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.benchmarks.scores import average_columns
from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.evaluated_models import EvaluatedModel, compare_models, find_best_teacher, find_first
from stages.page.inputs import History


def make_summary(models: Sequence[EvaluatedModel], ril: History, validation: History) -> dict[str, Any]:
    """Scores and gains of the RIL student, as shares; errors are standard errors, for gains those of the paired
    difference.

    Numbers that were not measured are left out. Empty if no RIL student was scored.
    """
    student = find_first(models, "ril")
    if student is None:
        return {}
    found: dict[str, Any] = {
        "accuracy": student.accuracy,
        "accuracy_error": student.standard_error,
        "accuracy_shuffled": student.shuffled,
        "tokens": student.metrics["mean_tokens"],
        "truncated": student.metrics["truncated_share"],
    }
    for role in ("warm_start", "base"):
        other = find_first(models, role)
        if other is not None:
            gain = compare_models(student, other)
            found |= {
                role: other.accuracy,
                f"gain_over_{role}": gain.mean,
                f"gain_over_{role}_error": gain.standard_error,
            }
    teacher = find_best_teacher(models)
    average = average_columns(student.metrics.get("benchmarks", {}))
    found |= {
        "best_teacher": None if teacher is None else teacher.accuracy,
        "columns_mean": average["value"],  # over the paper's columns that are complete, in per cent
        "validation_start": find_first_number(validation.get(names.VALIDATION)),
        "validation_end": average_last(validation.get(names.VALIDATION), 1),
        "similarity_reward": average_last(ril.get(names.STUDENT_SIMILARITY)),
        "answer_reward": average_last(ril.get(names.STUDENT_ANSWER)),
        "kl": average_last(ril.get(names.for_source(names.KL, STUDENT))),
        "entropy": average_last(ril.get(names.for_source(names.ENTROPY, STUDENT))),
    }
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


def find_first_number(values: Sequence[float] | None) -> float | None:
    """The first finite number; None if there is none."""
    return next((value for value in values or () if math.isfinite(value)), None)


def average_last(values: Sequence[float] | None, steps: int = 10) -> float | None:
    """The mean of the finite numbers among the last `steps`; None if there are none."""
    found = [value for value in (values or ())[-steps:] if math.isfinite(value)]
    return sum(found) / len(found) if found else None


def compute_relative_gain(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """Gain over the base student relative to the base's score, with its standard error (the base's score taken as
    exact). None if it was not measured.
    """
    base = summary.get("base", 0.0)
    if not base or "gain_over_base" not in summary:
        return None
    return summary["gain_over_base"] / base, summary.get("gain_over_base_error", 0.0) / base

"""The run in a dozen numbers: reports/report/metrics.json, the columns of `dvc exp show` by which experiments are
compared.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.benchmarks.scores import average_of_columns
from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.inputs import History
from stages.page.scores import Scored, best_teacher, difference, first_of


def summary_of(models: Sequence[Scored], ril: History, validation: History) -> dict[str, Any]:
    """Scores and gains of the RIL student, as shares; errors are standard errors, for gains those of the paired
    difference.

    Numbers that were not measured are left out. Empty if no RIL student was scored.
    """
    student = first_of(models, "ril")
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
        other = first_of(models, role)
        if other is not None:
            gain = difference(student, other)
            found |= {
                role: other.accuracy,
                f"gain_over_{role}": gain.mean,
                f"gain_over_{role}_error": gain.standard_error,
            }
    teacher = best_teacher(models)
    average = average_of_columns(student.metrics.get("benchmarks", {}))
    found |= {
        "best_teacher": None if teacher is None else teacher.accuracy,
        "columns_mean": average["value"],  # over the paper's columns that are complete, in per cent
        "validation_start": first(validation.get(names.VALIDATION)),
        "validation_end": last(validation.get(names.VALIDATION), 1),
        "similarity_reward": last(ril.get(names.STUDENT_SIMILARITY)),
        "answer_reward": last(ril.get(names.STUDENT_ANSWER)),
        "kl": last(ril.get(names.by_source(names.KL, STUDENT))),
        "entropy": last(ril.get(names.by_source(names.ENTROPY, STUDENT))),
    }
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


def first(values: Sequence[float] | None) -> float | None:
    """The first finite number; None if there is none."""
    return next((value for value in values or () if math.isfinite(value)), None)


def last(values: Sequence[float] | None, steps: int = 10) -> float | None:
    """The mean of the finite numbers among the last `steps`; None if there are none."""
    found = [value for value in (values or ())[-steps:] if math.isfinite(value)]
    return sum(found) / len(found) if found else None


def relative(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """Gain over the base student relative to the base's score, with its standard error (the base's score taken as
    exact). None if it was not measured.
    """
    base = summary.get("base", 0.0)
    if not base or "gain_over_base" not in summary:
        return None
    return summary["gain_over_base"] / base, summary.get("gain_over_base_error", 0.0) / base

"""Metrics and curves of the stages before the evaluation."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.pool import Pool
from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.job.files import read_json
from stages.job.job import Job


@dataclass(frozen=True)
class History:
    """A table of numbers by step."""

    columns: Mapping[str, Sequence[float]]  # an empty cell is nan

    @property
    def steps(self) -> Sequence[float]:
        """The column STEP."""
        return self.columns[names.STEP]

    def get(self, name: str) -> Sequence[float] | None:
        """A column; None when it is not there or holds no number."""
        values = self.columns.get(name)
        return values if values and any(math.isfinite(value) for value in values) else None


def read_history(job: Job, stage: str, name: str = "history.csv") -> History:
    """reports/<stage>/<name>. Raises MissingInput when it is not there, ValueError for what is no table of numbers."""
    path = require_path(job, job.input(f"reports/{stage}") / name)
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as CSV ({error}); restore it or run its stage again") from error
    columns: dict[str, list[float]] = {key: [] for key in (rows[0] if rows else [names.STEP])}
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}: line {number} has not as many cells as the first line; run its stage again")
        for key, text in row.items():
            try:
                columns[key].append(float(text) if text else math.nan)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}, column {key}: {text!r} is no number") from error
    return History(columns)


def read_metrics(job: Job, stage: str, item: str = "") -> dict[str, Any]:
    """reports/<stage>/<item>/metrics.json. Raises MissingInput when it is not there."""
    return read_json(require_path(job, job.input(f"reports/{stage}") / item / "metrics.json"))


def require_path(job: Job, path: Path) -> Path:
    """`path`, which exists; raises MissingInput with the stage that makes it."""
    if not path.exists():
        raise job.explain_missing(str(path.relative_to(job.root)))
    return path


def tabulate_teachers(job: Job) -> list[dict[str, Any]]:
    """One row for each teacher of the pool: what it answered, what the judge said of it, what was kept."""
    pool = read_metrics(job, "pool")
    rows = []
    for name in sorted(job.block(Pool).teachers):
        verdict = read_metrics(job, "verdict", name)
        rows.append({"teacher": name, **pool[name], "verdicts": verdict["verdicts"], "by_rule": verdict["by_rule"]})
    return rows


def read_exam_scores(job: Job) -> dict[str, Any] | None:
    """What the judge scored on labelled answers and attacks (`verdict.exam`); None where it sat no exam.

    All teachers' answers have the same judge, so the first one's verdicts tell.
    """
    found: dict[str, Any] | None = read_metrics(job, "verdict", min(job.block(Pool).teachers)).get("exam")
    return found


def tabulate_discriminator(found: Mapping[str, Any], teacher_ids: Sequence[str]) -> list[tuple[str, float, str]]:
    """Held-out accuracy of the pre-trained discriminator: what was measured, its share, what the reader should know.

    Nothing for an objective without discriminator.
    """
    if names.HELD_OUT_ACCURACY not in found:
        return []
    of = names.HELD_OUT_ACCURACY_OF
    rows = [
        ("All texts", found[names.HELD_OUT_ACCURACY], "mean of student and teachers; 50 % is chance"),
        ("Student's texts", found[of.format(STUDENT)], "classified as the student's"),
        ("Teachers' texts", found[of.format(TEACHERS)], "classified as a teacher's"),
    ]
    rows += [(f"… of {name}", found[of.format(name)], "") for name in sorted(teacher_ids) if of.format(name) in found]
    return [
        *rows,
        (
            "By length alone",
            found[names.LENGTH_ACCURACY],
            "best single threshold on the number of characters",
        ),
    ]

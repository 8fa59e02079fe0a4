"""The benchmarks of the report: measured scores with intervals, the paper's quoted rows, time per answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.benchmarks.paper import CAVEATS, list_paper_scores
from stages.benchmarks.registry import COLUMNS, load_registry
from stages.benchmarks.scores import NORMAL_95, average_columns, collect_column_scores
from stages.job.files import read_json
from stages.job.job import Job
from stages.page.evaluated_models import EvaluatedModel


def tabulate_benchmarks(models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """One row per benchmark that any model answered: profile, judge and source, and a cell per model."""
    every = {name: numbers for model in models for name, numbers in model.metrics.get("benchmarks", {}).items()}
    return [
        {
            "title": numbers["title"],
            "column": numbers.get("column"),
            "units": numbers["units"],
            "profile": numbers["profile"],
            "style": numbers["style"],
            "judge": numbers["judge"],
            "source": numbers["source"],
            "cells": [_make_cell(model.metrics.get("benchmarks", {}).get(name)) for model in models],
        }
        for name, numbers in every.items()
    ]


def _make_cell(numbers: Mapping[str, Any] | None) -> dict[str, Any]:
    """A score with half of its interval, and a note on rows without a score."""
    if numbers is None or numbers["score"] is None:
        failed = "" if numbers is None else _describe_gaps(numbers)
        return {"score": None, "error": None, "note": failed}
    return {"score": numbers["score"], "error": numbers["error"], "note": _describe_gaps(numbers)}


def _describe_gaps(numbers: Mapping[str, Any]) -> str:
    names = (
        ("unparsed", "unparsed"),
        ("judge_failed", "judge failed"),
        ("pending", "not judged"),
        ("missing", "no reply"),
    )
    return ", ".join(f"{numbers[key]:.0f} % {name}" for key, name in names if numbers[key] > 0)


def list_errors(models: Sequence[EvaluatedModel]) -> list[str]:
    """Benchmarks that could not be read, with the reason, each once."""
    found = {
        f"{name}: {text}": None for model in models for name, text in model.metrics.get("benchmark_errors", {}).items()
    }
    return list(found)


def tabulate_columns(models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """Our models in the paper's columns, with the average over those that are complete."""
    rows = []
    for model in models:
        numbers = model.metrics.get("benchmarks", {})
        scores, average = collect_column_scores(numbers), average_columns(numbers)
        if average["over"]:
            rows.append({"title": model.title, "cells": [scores[name] for name in COLUMNS], **average})
    return rows


def tabulate_paper() -> dict[str, Any]:
    """The paper's rows as printed, with their average and caveats."""
    rows = [
        {
            "title": name,
            "cells": [row[column] for column in COLUMNS],
            "value": sum(row.values()) / len(row),
            "error": NORMAL_95
            * math.sqrt(sum(compute_variance(row[column], column) for column in COLUMNS))
            / len(COLUMNS),
        }
        for name, row in list_paper_scores().items()
    ]
    return {"columns": COLUMNS, "rows": rows, "caveats": CAVEATS}


def compute_variance(score: float, column: str) -> float:
    """Variance of a printed score in per cent, from its number of rows alone: a lower bound."""
    rows = sum(spec.expected for spec in load_registry().values() if spec.column == column)
    return score * (100 - score) / rows


def find_paper_rows(models: Sequence[EvaluatedModel], student: str) -> dict[str, Any] | None:
    """The paper's base and RIL rows for comparison: of the student that is named in `student`, else the first.

    None if no measured benchmark is one of the paper's columns.
    """
    if not any(numbers.get("column") for model in models for numbers in model.metrics.get("benchmarks", {}).values()):
        return None
    rows = list_paper_scores()
    bases = [name for name in rows if " + " not in name]
    base = next((name for name in bases if name.lower() in student.lower()), bases[0])
    ril = f"{base} + RIL (both teachers)"
    return {"base": base, "ril": ril, "base_scores": rows[base], "ril_scores": rows[ril]}


def tabulate_speeds(job: Job, models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """Tokens and milliseconds per answer, of the answers that this machine generated; stored answers take no time."""
    rows = []
    for model in models:
        file = (
            job.root / "reports/evaluate" / model.id / "speed" / "timing.json"
        )  # no input: DVC neither tracks nor keeps it
        measured = read_json(file) if file.is_file() else {}
        nothing = dict.fromkeys(("answers", "milliseconds_an_answer", "tokens_per_second"))
        row = {"title": model.title, "role": model.role, "tokens": model.metrics["mean_tokens"]}
        rows.append({**row, **nothing, **measured})
    return rows

"""Faults of teachers in the student's answers: who says what the question would have been answered with the digits that
a teacher takes for each other exchanged.

The tiny data set is a function of its seed, so this follows from the parameters and the ids of the questions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.config.params import Params
from stages.corpora.scoring import is_correct
from stages.job.metric_names import STEP
from stages.tiny.world.exercises import misread_example
from stages.tiny.world_rows import draw_world_row

Pairs = Mapping[str, Sequence[tuple[int, int]]]  # by teacher, digits that it takes for each other
Faults = Mapping[str, Mapping[str, str]]  # by teacher, the answer that its fault leads to by question


def list_faulty_teachers(params: Params) -> dict[str, tuple[tuple[int, int], ...]]:
    """The pairs of digits that each teacher takes for each other, of those that take any."""
    found = {}
    for name, teacher in params.teachers.items():
        build = params.models[teacher.model].build
        if build is not None and build.confuses:
            found[name] = tuple(build.confuses)
    return found


def find_fault_answers(
    params: Params, split: str, ids: Iterable[str], looked_for: Pairs | None = None
) -> dict[str, dict[str, str]]:
    """For each faulty teacher the answer that its fault leads to, by id of the question, where that is a wrong one.

    Without faulty teachers, `looked_for` are pairs that they might take for each other.

    Empty unless the questions are those of the tiny data set. Raises ValueError for an id that is not of this split.
    """
    faulty: Pairs = list_faulty_teachers(params) or looked_for or {}
    if params.questions.kind != "world" or not faulty:
        return {}
    world = params.world
    found: dict[str, dict[str, str]] = {name: {} for name in faulty}
    for name in ids:
        number = int(name.removeprefix(f"{split}-"))
        row = draw_world_row(world, split, number)
        for teacher, pairs in faulty.items():
            answer = misread_example(row, pairs).exercise.answer
            if answer != row.exercise.answer:
                found[teacher][name] = answer
    return found


def compute_fault_shares(rows: Iterable[Mapping[str, Any]], faults: Faults) -> dict[str, float]:
    """Share of the answers that are the fault of each teacher, and of `any`, among those to questions that it changes.

    nan where there is no such question; empty without faulty teachers.
    """
    said = {str(row["question_id"]): str(row["response"]) for row in rows}
    repeats: dict[str, dict[str, bool]] = {
        teacher: {name: is_correct(said[name], answer) for name, answer in answers.items() if name in said}
        for teacher, answers in faults.items()
    }
    if not repeats:
        return {}
    changed = {name for found in repeats.values() for name in found}
    either = [any(found.get(name, False) for found in repeats.values()) for name in sorted(changed)]
    return {**{teacher: _average(list(found.values())) for teacher, found in repeats.items()}, "any": _average(either)}


def compute_fault_curves(
    rows: Sequence[Mapping[str, Any]], params: Params, looked_for: Pairs | None = None
) -> dict[str, list[float]]:
    """The shares by step, as columns fault/<teacher> with the column of steps; rows are answers with their step.

    Empty without rows or without faulty teachers.
    """
    faults = find_fault_answers(params, "validation", {str(row["question_id"]) for row in rows}, looked_for)
    if not rows or not faults:
        return {}
    steps = sorted({int(row[STEP]) for row in rows})
    shares = [compute_fault_shares([row for row in rows if row[STEP] == step], faults) for step in steps]
    return {
        STEP: [float(step) for step in steps],
        **{f"fault/{name}": [one[name] for one in shares] for name in shares[0]},
    }


def _average(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan

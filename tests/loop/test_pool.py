"""`pool.run` against what section 4.3 asks for: all whole answers of the chosen teachers, each with its own verdict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages import pool
from stages.job.files import read_shards
from tests.loop.world import DRAWN, LEARNING, TEACHERS, is_cut, make_job, rate_teacher, say_as_teacher

SETTINGS: dict[str, tuple[dict[str, Any], Callable[[str, bool, int | None], bool]]] = {
    "both": ({}, lambda teacher, cut, verdict: not cut),
    "one": ({"teachers": [TEACHERS[1]]}, lambda teacher, cut, verdict: teacher == TEACHERS[1] and not cut),
    "right": ({"wrong": "drop"}, lambda teacher, cut, verdict: not cut and verdict != 0),
    "cut": ({"truncated": "keep"}, lambda teacher, cut, verdict: True),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_pool_holds_the_answers_that_it_should(name: str, make_world: Callable[[str], Path]) -> None:
    overlay, wanted = SETTINGS[name]
    folder = make_world("internvl3")
    job = make_job("pool", folder, {"pool": overlay})
    pool.run(job)
    expected = {
        task.id: [
            {
                "teacher": teacher,
                "sample": sample,
                "text": say_as_teacher(teacher, task, sample),
                "verdict": rate_teacher(teacher, task, sample),
                "finish_reason": "length" if is_cut(task, sample) else "stop",
            }
            for teacher in TEACHERS
            for sample in range(DRAWN)
            if wanted(teacher, is_cut(task, sample), rate_teacher(teacher, task, sample))
        ]
        for task in LEARNING
    }
    assert {row["question_id"]: row["answers"] for row in read_shards(job.out).to_pylist()} == expected

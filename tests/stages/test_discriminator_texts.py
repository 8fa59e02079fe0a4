"""The texts that stage discriminator learns from: whole answers, or all of them by switch."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stages.discriminator import open_texts
from stages.job.files import read_shards, write_shards
from stages.job.job import Job
from stages.responses.schemas import ANSWERS, POOL

BROKEN = {"cut": ("so 5, an", "length"), "empty": ("", "stop"), "loop": ("so 5, " * 9, "stop")}


@pytest.mark.parametrize("kind", list(BROKEN))
@pytest.mark.parametrize("every", [False, True])
def test_broken_answers_of_both_sides_are_left_out_unless_all_are_learned(
    loop_project: Callable[[str, Mapping[str, Any]], Job], kind: str, every: bool
) -> None:
    """The first answer of each side to the first question is broken, and so are all student answers to the second."""
    job = loop_project("discriminator", {})
    text, reason = BROKEN[kind]
    rollout = read_shards(job.input("data/rollout")).to_pylist()
    for row in rollout[:1] + rollout[4:8]:
        row |= {"response": text, "finish_reason": reason}
    pool = read_shards(job.input("data/pool")).to_pylist()
    pool[0]["answers"][0] |= {"text": text, "finish_reason": reason}
    write_shards(job.input("data/rollout"), rollout, ANSWERS)
    write_shards(job.input("data/pool"), pool, POOL)
    found = {one.question_id: one for one in open_texts(job, every, "response")}
    assert (len(found["q0"].student), len(found["q0"].teachers)) == ((4, 8) if every else (3, 7))
    assert (text in found["q0"].student) == (text in [one.text for one in found["q0"].teachers]) == every
    assert ("q1" in found) == every
    assert len(found["q2"].student) == 4

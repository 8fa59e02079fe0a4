"""Selects the stored answers of a step: balanced over teachers, different at every visit, determined by the seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TeacherAnswer:
    """One answer of the pool."""

    teacher: str
    sample: int
    text: str
    verdict: int | None
    finish_reason: str


def read_teacher_answers(row: Mapping[str, Any]) -> list[TeacherAnswer]:
    """Returns the answers in one row of the pool."""
    return [TeacherAnswer(**answer) for answer in row["answers"]]


def draw_balanced(answers: Sequence[TeacherAnswer], wanted: int, seed: int) -> list[TeacherAnswer]:
    """Returns `wanted` answers without replacement (all, if there are fewer), as equally from each teacher as possible.

    The seed determines which teachers give one more when the number is not divisible, and which answers are selected.
    The paper attributes the gain to the variety of teacher responses (§4.3).
    """
    choose = random.Random(seed)
    teachers = sorted({answer.teacher for answer in answers})
    choose.shuffle(teachers)
    stacks = []
    for teacher in teachers:
        stack = [answer for answer in answers if answer.teacher == teacher]
        choose.shuffle(stack)
        stacks.append(stack)
    drawn: list[TeacherAnswer] = []
    while len(drawn) < wanted and any(stacks):
        for stack in stacks:
            if stack and len(drawn) < wanted:
                drawn.append(stack.pop())
    return drawn


def draw_plain(texts: Sequence[str], wanted: int, seed: int) -> list[str]:
    """Returns `wanted` of the texts, sampled without replacement (all, if there are fewer)."""
    return random.Random(seed).sample(list(texts), min(wanted, len(texts)))

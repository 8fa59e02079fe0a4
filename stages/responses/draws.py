"""Which stored answers a step uses: balanced over teachers, fresh at every visit, a function of the seed alone."""

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
    """The answers of one row of the pool."""
    return [TeacherAnswer(**answer) for answer in row["answers"]]


def draw_balanced(answers: Sequence[TeacherAnswer], wanted: int, seed: int) -> list[TeacherAnswer]:
    """`wanted` of the answers without replacement (all, when there are fewer), as equally from each teacher as can be.

    Which teacher gives one more where it does not come out even, and which of its answers are taken, changes with the
    seed (the variety of teacher text is what the gain is owed to, §4.3).
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
    """`wanted` of the texts without replacement (all, when there are fewer)."""
    return random.Random(seed).sample(list(texts), min(wanted, len(texts)))

"""Selects the stored answers of a step: balanced over teachers, different at every visit, determined by the seed."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.job.shards import Shards


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


class StoredPool(Mapping[str, list[TeacherAnswer]]):
    """The answers of a pool by question, read from files on access; holds the ids and row numbers."""

    def __init__(self, folder: Path) -> None:
        """`folder` has rows of POOL."""
        self._shards = Shards(folder)
        ids = self._shards.iter_rows(["question_id"])
        self._rows = {row["question_id"]: place for place, row in enumerate(ids)}

    def __getitem__(self, name: str) -> list[TeacherAnswer]:
        return read_teacher_answers(self._shards.read_row(self._rows[name], ["answers"]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


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

"""The answers of student and teachers that the discriminator learns from, read from files on access."""

import copy
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.adversary.discriminator_model import Text
from stages.corpora.rows import IMITATION_SPLITS, Question, find_questions
from stages.groups.response import is_whole_text
from stages.job.lazy_sequence import LazySequence
from stages.job.shards import Shards
from stages.responses.draws import StoredPool, TeacherAnswer

_ANSWER = ("response", "finish_reason")


@dataclass(frozen=True)
class QuestionTexts:
    """The student and teacher texts of one question that the discriminator may learn from."""

    question_id: str
    student: tuple[str, ...]
    teachers: tuple[TeacherAnswer, ...]
    question: Question | None  # None for a discriminator that sees only the response

    def make_text(self, body: str) -> Text:
        """Wraps one response as input of the discriminator."""
        if self.question is None:
            return Text(body, self.question_id)
        return Text(body, self.question_id, self.question.messages, self.question.images)


class StoredTexts(LazySequence[QuestionTexts]):
    """The texts of every question that has both student and teacher texts, in pool order; holds their row numbers."""

    def __init__(self, rollout: Path, pool: Path, questions: Path | None, every: bool) -> None:
        """Reads all texts once, to see which are whole; without `every`, the others are left out.

        `rollout` is a folder with rows of ANSWERS, `pool` one with rows of POOL, `questions` that of the splits; None
        for a discriminator that sees only the response.
        """
        self._rollout, self._pool, self._every = Shards(rollout), StoredPool(pool), every
        rows: dict[str, array[int]] = defaultdict(lambda: array("q"))
        for place, row in enumerate(self._rollout.iter_rows(("question_id", *_ANSWER))):
            if every or is_whole_text(row["response"], row["finish_reason"]):
                rows[row["question_id"]].append(place)
        self._rows = {name: rows[name] for name in self._pool if name in rows and self._list_teachers(name)}
        self._questions = None if questions is None else find_questions(questions, IMITATION_SPLITS, self._rows)
        self.names = list(self._rows)

    def _list_teachers(self, name: str) -> tuple[TeacherAnswer, ...]:
        answers = self._pool[name]
        return tuple(one for one in answers if self._every or is_whole_text(one.text, one.finish_reason))

    def choose(self, names: Sequence[str]) -> "StoredTexts":
        """Returns the texts of these questions only."""
        chosen = copy.copy(self)
        chosen.names = list(names)
        return chosen

    def __len__(self) -> int:
        return len(self.names)

    def read_item(self, place: int) -> QuestionTexts:
        """Returns the texts of one question."""
        name = self.names[place]
        student = tuple(self._rollout.read_row(row, _ANSWER)["response"] for row in self._rows[name])
        question = None if self._questions is None else self._questions[name]
        return QuestionTexts(name, student, self._list_teachers(name), question)

"""Answers that say nothing: empty ones, and one text for every question. A model that writes them teaches nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

FEWEST = 8  # answers, and questions, from which on a share is judged; fewer may be empty or alike by chance
_COUNTED = 64  # texts whose questions are counted; memory does not grow with the number of questions
_SHOWN = 40  # characters of a text in a message


class Bounds(Protocol):
    """The bounds that the blocks `teachers.<id>`, `rollout` and `pool` set."""

    @property
    def max_empty_share(self) -> float: ...
    @property
    def max_same_share(self) -> float: ...


class UselessAnswers(ValueError):
    """A model's answers are empty, or the same to different questions; the message has the share and the bound."""


@dataclass
class AnswerVariety:
    """Counts empty answers, and the questions that share their first answer.

    The questions of a text are counted in bounded memory (Misra and Gries 1982): the share is too low by at most
    1 / 65, never too high.
    """

    title: str
    bounds: Bounds
    say: Callable[[str], None]
    answers: int = 0
    empty: int = 0
    questions: int = 0
    _counts: dict[str, int] = field(default_factory=dict)
    _last: str | None = None  # the last question
    _warned: bool = False

    def add(self, rows: Iterable[tuple[str, str]]) -> None:
        """Adds (question id, text) rows; those of one question follow each other.

        Says when a share exceeds half of its bound. Raises UselessAnswers above a bound.
        """
        for question, text in rows:
            said = text.strip()
            self.answers += 1
            self.empty += not said
            if question != self._last:
                self._last = question
                self.questions += 1
                self._count(said)
        self._check()

    def _count(self, text: str) -> None:
        if text in self._counts or len(self._counts) < _COUNTED:
            self._counts[text] = self._counts.get(text, 0) + 1
        else:
            self._counts = {known: count - 1 for known, count in self._counts.items() if count > 1}

    def _check(self) -> None:
        empty = self.empty / max(self.answers, 1)
        if self.answers < FEWEST and empty < 1:
            return
        text, count = max(self._counts.items(), key=lambda item: item[1], default=("", 0))
        same = count / self.questions if self.questions >= FEWEST else 0.0
        none = f"{self.empty} of {self.answers} answers are empty"
        one = f"{count} of {self.questions} questions have the same first answer, {text[:_SHOWN]!r}"
        shares = [
            (empty, self.bounds.max_empty_share, "max_empty_share", none),
            (same, self.bounds.max_same_share, "max_same_share", one),
        ]
        for share, bound, name, said in shares:
            if share > bound:
                raise UselessAnswers(
                    f"{self.title}: {said}: {share:.0%}, above {name} = {bound:g}; they would teach nothing. Check the "
                    f"model and its chat template, or raise {name}. Answers that were generated stay stored"
                )
        if not self._warned and any(share > bound / 2 for share, bound, _, _ in shares):
            self._warned = True
            worst = max(shares, key=lambda one: one[0] / one[1] if one[1] else one[0])
            self.say(f"warning: {self.title}: {worst[3]}: {worst[0]:.0%}; the stage fails above {worst[1]:.0%}")

"""Ends training when a number is NaN or infinite, and notices gradients that are far larger than before.

A non-finite loss or gradient makes every weight NaN in one update, and no later step repairs that. So the loss and the
gradient norm, which the step copies from the device anyway, are checked before the update. All ranks know the same
numbers and end together: the first raises NonFinite, the others exit.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from stages.training.ranks import get_ranks

WINDOW = 64  # steps of the running median of the gradient norm
SETTLED = 8  # norms from which on the median counts
_NAMED = 5  # questions that a message names


class NonFinite(ValueError):
    """A number of training is NaN or infinite; the message says which, in which step, and what is kept."""


def _say_nothing(text: str) -> None:
    pass


def _keep_nothing() -> str:
    return "nothing is written"


@dataclass
class StepGuard:
    """Where training stands, and how it ends when a number is not finite."""

    title: str = "training"
    step: int | None = None  # the current step, from 0; None outside the loop
    describe_kept: Callable[[], str] = _keep_nothing
    say: Callable[[str], None] = _say_nothing

    @property
    def place(self) -> str:
        """Title and step, for messages."""
        return self.title if self.step is None else f"{self.title}: step {self.step + 1}"

    def check(self, term: str, values: Iterable[float], ids: Sequence[str] = ()) -> None:
        """Ends training if one of the values of `term`, which all ranks know, is not finite; `ids` are questions."""
        for value in values:
            if not math.isfinite(value):
                self.stop(term, value, ids)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Ends training if a number of a history's row is not finite; what was not measured is None."""
        for name, value in row.items():
            if isinstance(value, float):
                self.check(name, [value])

    def stop(self, term: str, value: float | str, ids: Sequence[str] = ()) -> NoReturn:
        """Ends training; all ranks must call it. Raises NonFinite on the first rank, SystemExit on the others."""
        if not get_ranks().first:
            raise SystemExit(0)
        raise NonFinite(f"{self.place}: {term} is {value}{name_questions(ids)}; {self.describe_kept()}")


def name_questions(ids: Sequence[str]) -> str:
    """Returns " on question q1", or " on one of the questions q1, q2 and 7 more"; "" without ids."""
    known = list(dict.fromkeys(name for name in ids if name))
    if not known:
        return ""
    if len(known) == 1:
        return f" on question {known[0]}"
    rest = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return f" on one of the questions {', '.join(known[:_NAMED])}{rest}"


@dataclass
class NormHistory:
    """The last gradient norms of one model, and the limit above which the next one is a spike."""

    factor: float
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def limit(self) -> float:
        """`factor` times the median of the last norms; infinite until there are SETTLED of them, or if it is 0."""
        if len(self.norms) < SETTLED:
            return math.inf
        return self.factor * statistics.median(self.norms) or math.inf

    def add(self, norm: float) -> None:
        """Adds a norm, also that of a skipped step: gradients that stay large are no spike for long."""
        self.norms.append(norm)

"""What is asked about the pictures of the tiny world, the reference answers, and the styles of answering.

Every kind needs all six values and an intermediate result. `terse` writes the answer alone; `steps` writes a running
result beside every value; `arrows` does so in other signs and words. A terse answer has to be worked out in
one step; a written-out one in six small ones, of which each can be seen to be right or wrong. `padded` has the
form and the length of `steps`, with zeros in place of what was read: it has to be worked out in one step too.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

PLACE_NAMES = "abcdef"  # names of the six digits in reading order, and of the six bars from left to right


@dataclass(frozen=True)
class Kind:
    """A kind of question: `running` gives the intermediate results, the last of which is the answer."""

    name: str
    subject: str
    wordings: tuple[str, ...]
    running: Callable[[Sequence[int]], list[int]]


def _sum_running(values: Sequence[int]) -> list[int]:
    return [total % 10 for total in accumulate(values)]


def _alternate_signs(values: Sequence[int]) -> list[int]:
    return [total % 10 for total in accumulate(value if i % 2 == 0 else -value for i, value in enumerate(values))]


def _track_largest(values: Sequence[int]) -> list[int]:
    return list(accumulate(values, max))


def _count_odd(values: Sequence[int]) -> list[int]:
    return list(accumulate(value % 2 for value in values))


def _count_rises(values: Sequence[int]) -> list[int]:
    return list(accumulate(int(value > before) for before, value in zip([values[0], *values], values, strict=False)))


KINDS = {
    kind.name: kind
    for kind in (
        Kind("sum", "digits", ("What is the last digit of the sum?", "Add up all digits, modulo 10."), _sum_running),
        Kind(
            "alternating",
            "digits",
            ("Add and subtract the digits in turn, modulo 10.", "What is the alternating sum modulo 10?"),
            _alternate_signs,
        ),
        Kind("largest", "digits", ("Which is the largest digit?", "What is the highest digit?"), _track_largest),
        Kind("odd", "digits", ("How many digits are odd?", "Count the odd digits."), _count_odd),
        Kind(
            "total",
            "bars",
            ("What is the last digit of the total height?", "Add up the bars, modulo 10."),
            _sum_running,
        ),
        Kind(
            "rises",
            "bars",
            ("How many bars are higher than the one before?", "Count the rises from bar to bar."),
            _count_rises,
        ),
    )
}


@dataclass(frozen=True)
class Exercise:
    """One question about six values, without the picture."""

    kind: str
    question: str
    values: tuple[int, ...]
    running: tuple[int, ...]

    @property
    def answer(self) -> str:
        """The reference answer."""
        return str(self.running[-1])


def ask_question(kind_name: str, values: Sequence[int], choose: random.Random) -> Exercise:
    """A question of this kind about `values`, in a wording that `choose` picks."""
    kind = KINDS[kind_name]
    return Exercise(kind.name, choose.choice(kind.wordings), tuple(values), tuple(kind.running(values)))


def answer_in_style(exercise: Exercise, style: str) -> str:
    """The right answer to `exercise`, written in `style`."""
    if style == "terse":
        return exercise.answer
    if style == "padded":
        return f"{','.join(f'{place}0:0' for place in PLACE_NAMES)}. Answer: {exercise.answer}"
    steps = zip(PLACE_NAMES, exercise.values, exercise.running, strict=True)
    if style == "steps":
        return f"{','.join(f'{place}{value}:{result}' for place, value, result in steps)}. Answer: {exercise.answer}"
    if style == "arrows":
        return f"{' '.join(f'{place}{value}->{result}' for place, value, result in steps)} so {exercise.answer}."
    raise ValueError(f"unknown style {style!r}; known: terse, padded, steps, arrows")


def read_out(values: Sequence[int], style: str) -> str:
    """The values with their places, in the signs of `style`: "a3,b8,..." or "a3 b8 ..."."""
    return (" " if style == "arrows" else ",").join(
        f"{place}{value}" for place, value in zip(PLACE_NAMES, values, strict=True)
    )

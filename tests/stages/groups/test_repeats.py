"""Repetition at the end of a text, against the definition, and which texts count as whole."""

import random

import pytest

from stages.groups.repeats import COPIED, ends_in_copy, find_repeats
from stages.groups.response import Response, is_whole_text


def count_copied(text: str, period: int) -> int:
    """Characters at the end of `text` that equal those `period` before them, by definition."""
    copied = 0
    while copied + period < len(text) and text[-1 - copied] == text[-1 - copied - period]:
        copied += 1
    return copied


def test_repeats_are_those_of_the_definition() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab") for _ in range(draw.randrange(30))) * draw.randint(1, 3)
        wanted = [(p, p + count_copied(text, p)) for p in range(1, len(text)) if count_copied(text, p) >= p]
        assert list(find_repeats(text)) == wanted


@pytest.mark.parametrize("period", [*range(1, 70), 200, 1000])
def test_a_loop_of_any_period_is_no_whole_answer(period: int) -> None:
    """Whatever stands before it and wherever the last copy of the block ends."""
    draw = random.Random(period)
    block = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(period))
    copied = max(period, COPIED)
    endless = block * (copied + 3)
    loop = endless[: period + copied]
    for text in (loop, f"The sum is 16. {loop}", endless[: period + copied + period // 2]):
        assert ends_in_copy(text)
        assert not is_whole_text(text, "stop")
    assert not ends_in_copy(loop[: period + min(period, COPIED) - 1])


@pytest.mark.parametrize(
    "text",
    ["1,000,000,000", "111", "3 + 3 + 3 = 9", "so it is 5. Answer: 5", "| a | b |\n|---|---|\n| 1 | 2 |", "x" * COPIED],
)
def test_what_is_no_loop(text: str) -> None:
    assert is_whole_text(text, "stop")
    assert not is_whole_text(text, "length"), "but cut"


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_answer_is_not_whole(text: str) -> None:
    assert not Response("student", text, (1,), "stop", 1).is_whole


def test_a_long_text_takes_linear_time() -> None:
    """A million characters of each hard kind: all the same, and a loop broken at its very end."""
    for text in ("a" * 1_000_000, "ab" * 500_000 + "a" * 7):
        assert sum(1 for _ in find_repeats(text)) > 0

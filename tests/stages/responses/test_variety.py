"""Answers that teach nothing end their stage; those of weak but honest models pass."""

from collections.abc import Iterable

import pytest

from stages.config.answers import AnswerBounds
from stages.responses.variety import AnswerVariety, UselessAnswers


def watch(said: list[str], **bounds: float) -> AnswerVariety:
    return AnswerVariety("teacher@x", AnswerBounds(**bounds), said.append)


def rows(texts: Iterable[str], samples: int = 1) -> list[tuple[str, str]]:
    return [(f"q{number}", text) for number, text in enumerate(texts) for _ in range(samples)]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u00a0"])
def test_empty_answers_end_the_stage_even_when_they_are_few(text: str) -> None:
    with pytest.raises(UselessAnswers, match=r"teacher@x: 3 of 3 answers are empty: 100%, above max_empty_share = 0.2"):
        watch([]).add(rows([text] * 3))


@pytest.mark.parametrize("text", ["I can't see the image.", ".", "1", "\u200b"])
def test_the_same_answer_to_every_question_ends_the_stage(text: str) -> None:
    with pytest.raises(UselessAnswers, match=r"32 of 32 questions have the same first answer, .*max_same_share = 0.9"):
        watch([]).add(rows([text] * 32, 4))


def test_equal_answers_to_one_question_are_no_fault() -> None:
    said: list[str] = []
    watch(said).add(rows([f"the answer is {number}" for number in range(40)], 8))
    assert said == []


def test_yes_and_no_are_answers() -> None:
    said: list[str] = []
    watch(said).add(rows(["yes" if number % 3 else "no" for number in range(300)], 2))
    assert len(said) == 1
    assert "200 of 300 questions have the same first answer, 'yes': 67%; the stage fails above 90%" in said[0]


def test_it_is_said_while_it_runs_and_the_bound_is_the_parameters() -> None:
    said: list[str] = []
    variety = watch(said, max_empty_share=0.6)
    for wave in range(4):
        variety.add([(f"q{wave} {number}", "" if number % 2 else f"text {wave} {number}") for number in range(50)])
    assert len(said) == 1, "once"
    assert "25 of 50 answers are empty: 50%; the stage fails above 60%" in said[0]
    with pytest.raises(UselessAnswers, match=r"max_empty_share = 0\.6"):
        variety.add([(f"q{number}", "") for number in range(200)])


def test_a_common_answer_among_many_others_is_counted_in_bounded_memory() -> None:
    """Misra and Gries: too low by at most 1 / 65, never too high."""
    variety = watch([], max_same_share=1.0)
    variety.add(rows([f"text {number}" if number % 4 else "same" for number in range(20_000)]))
    assert len(variety._counts) <= 64
    assert 5_000 - 20_000 / 65 <= variety._counts["same"] <= 5_000

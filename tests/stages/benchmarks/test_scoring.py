"""The scorer's rule: a numeric reference wants the last number, any other one the same text."""

import pytest

from stages.corpora.scoring import find_last_number, is_correct, standard_error


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("28", "28", True),
        ("3:3,8:11. Answer: 28", "28", True),
        ("8->28 so 28.", "28", True),
        ("28, no, 27", "28", False),
        ("", "28", False),
        ("none", "28", False),
        ("28.0", "28", True),
        ("-5", "5", False),
        ("A cat.", "a  cat", True),
        ("a dog", "a cat", False),
    ],
)
def test_rule(answer: str, reference: str, right: bool) -> None:
    assert is_correct(answer, reference) is right


def test_last_number_and_standard_error() -> None:
    assert find_last_number("1,2 and 30.") == "30"
    assert find_last_number("none") is None
    assert standard_error(0.5, 100) == pytest.approx(0.05)

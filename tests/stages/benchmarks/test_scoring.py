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


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The total is 1,234.", "1234"),
        ("1234", "1,234"),
        ("It costs $5.", "$5"),
        ("5", "$5"),
        ("between 2-3", "3"),
        ("It is A-7", "7"),
        ("Answer7", "7"),
        ("−5", "-5"),
        ("-$5", "-5"),
        (r"\boxed{7}. I checked it 2 times.", "7"),
        ("The answer is 7 (in 2019)", "7"),
        ("The answer is B.", "B"),
        ("(B)", "B"),
        ("B. cat", "B"),
        ("**B**", "B"),
        ("Yes, it is.", "Yes"),
        ("No", "no"),
        ("1/2", "0.5"),
        ("50%", "50"),
        ("50", "50%"),
        ("1e3", "1000"),
        (".5", "0.5"),
        ("12 cm", "12"),
        ("1_000", "1000"),
        ("10:30", "10:30"),
        ("a red car", "red car"),
        ("Stop!", "Stop"),
        ('The sign says "Stop".', "Stop"),
        ("<think>3+4</think> 7", "7"),
        ("<answer>7</answer> and 8", "7"),
        ("answer: Paris", "Paris"),
        ("巴黎。", "巴黎"),
        ("７", "7"),
        ("0." + "0" * 400, "0"),
    ],
)
def test_a_reader_takes_it_as_right(answer: str, reference: str) -> None:
    assert is_correct(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("7</answer> 8", "7"),
        ("1_000", "1"),
        ("1/2", "2"),
        ("1/0", "0"),
        ("1e999999999", "1"),
        ("9" * 400, "8" * 400),  # both are infinite as floats
        ("nan", "0"),
        ("A cat", "A"),
        ("No, yes", "Yes"),
        ("yesterday", "yes"),
        ("", "cat"),
        ("7 " * 40_000, "7"),  # longer than what is read
        ("<think>7", "7"),
    ],
)
def test_a_reader_takes_it_as_wrong(answer: str, reference: str) -> None:
    assert not is_correct(answer, reference)


def test_last_number_and_standard_error() -> None:
    assert find_last_number("1,2 and 30.") == "30"
    assert find_last_number("none") is None
    assert standard_error(0.5, 100) == pytest.approx(0.05)

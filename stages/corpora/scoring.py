"""Scoring of an answer against a reference, without a judge."""

import re

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def find_last_number(text: str) -> str | None:
    """Returns the last number in `text`, None if there is none."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def is_correct(answer: str, reference: str) -> bool:
    """Returns whether `answer` matches `reference`.

    For a numeric reference, compares the last number in the answer by value. For any other reference, compares texts,
    ignoring case, whitespace and a final full stop.
    """
    if _NUMBER.fullmatch(reference.strip()):
        number = find_last_number(answer)
        return number is not None and float(number) == float(reference)
    return _normalise(answer) == _normalise(reference)


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def standard_error(share: float, count: int) -> float:
    """Returns the standard error of a proportion over `count` answers, in the unit of the proportion."""
    return (share * (1 - share) / count) ** 0.5 if count else 0.0

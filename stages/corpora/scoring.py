"""Scoring an answer against a reference, without a judge."""

import re

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def find_last_number(text: str) -> str | None:
    """The last number written in `text`, None when there is none."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def is_correct(answer: str, reference: str) -> bool:
    """Whether `answer` gives `reference`.

    A numeric reference asks for the last number of the answer, compared as a number; any other one for the same text,
    letter case, blanks and a closing full stop aside.
    """
    if _NUMBER.fullmatch(reference.strip()):
        number = find_last_number(answer)
        return number is not None and float(number) == float(reference)
    return _normalise(answer) == _normalise(reference)


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` answers, in the unit of the share."""
    return (share * (1 - share) / count) ** 0.5 if count else 0.0

"""What a format's reader yields: source rows, each with a function that makes its canonical row."""

from collections.abc import Callable
from typing import Any, NamedTuple

Canonical = dict[str, Any]  # a row of stages/corpora/rows.py::QUESTION_SCHEMA


class UnusableData(ValueError):
    """Users' data that cannot be used as a whole; the message has file, row or column, value and remedy."""


class RowFault(ValueError):
    """Why a row cannot be used, with the field that is at fault and its value (shortened)."""

    def __init__(self, reason: str, field: str = "", value: str = "") -> None:
        super().__init__(reason)
        self.field, self.value = field, value


class SourceRow(NamedTuple):
    """One row of users' data. ValueError and OSError that `canonical` raises reject the row with that reason.

    A module in stages/corpora/formats has `read(questions, root)`, which yields these in the order of the source. It
    raises UnusableData if the source as a whole cannot be read.
    """

    name: str
    canonical: Callable[[], Canonical]
    file: str = ""  # as the user wrote it, with the member behind it for an archive
    row: int = -1  # number in the file, from 0
    source: int = 0  # place in `questions.sources`
    split: str | None = None  # split of the data set that the row is of, if it has splits
    named: bool = True  # whether the data have an id; without one `name` is made from the row's place

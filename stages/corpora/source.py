"""What a format's reader yields: source rows, each with a function that makes its canonical row."""

from collections.abc import Callable
from typing import Any, NamedTuple

Canonical = dict[str, Any]  # a row of stages/corpora/rows.py::QUESTION_SCHEMA


class UnusableData(ValueError):
    """Users' data that cannot be used as a whole; the message has file, row or column, value and remedy."""


class SourceRow(NamedTuple):
    """One row of users' data. ValueError and OSError that `canonical` raises reject the row with that reason.

    A module in stages/corpora/formats has `read(questions, root)`, which yields these in the order of the source. It
    raises UnusableData if the source as a whole cannot be read.
    """

    name: str
    canonical: Callable[[], Canonical]

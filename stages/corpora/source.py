"""What the reader of a format yields: the rows of users' data, each with the way to its canonical form."""

from collections.abc import Callable
from typing import Any, NamedTuple

Canonical = dict[str, Any]  # a row of stages/corpora/rows.py::QUESTION_SCHEMA


class SourceRow(NamedTuple):
    """One row of users' data. `canonical` may raise what a malformed row raises; the row is rejected with that reason.

    A module in stages/corpora/formats has `read(questions, root)`, which yields these in the order of the source, and
    raises FileNotFoundError or ValueError where the source as a whole can't be read.
    """

    name: str
    canonical: Callable[[], Canonical]

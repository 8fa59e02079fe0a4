"""Data sets as they are: finds what the rows of `questions.sources` mean, and reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.config.questions import Questions
from stages.config.sources import Source
from stages.corpora.source import SourceRow, UnusableData


@dataclass(frozen=True)
class Guess:
    """What was found out about a source: a field of a question, and where its value comes from."""

    field: str
    source: str
    example: str = ""


class OpenSource:
    """One source whose form is known."""

    guesses: list[Guess]
    count: int | None  # number of rows, where the files say it

    def rows(self) -> Iterator[SourceRow]:
        """Yields the rows in the order of the files. Raises UnusableData for a file that cannot be read."""
        raise UnusableData("questions.sources: not read yet")


def open_source(source: Source, questions: Questions, root: Path) -> OpenSource:
    """Returns the source with its form, found out from its first rows.

    Raises UnusableData if it is not there, is outside what DVC watches, or is of no form that is known.
    """
    raise UnusableData(f"{source.path or source.hub}: not read yet")


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of all sources in their order; raises UnusableData as `open_source` and `OpenSource.rows`."""
    for place, source in enumerate(questions.sources):
        for row in open_source(source, questions, root).rows():
            yield row._replace(source=place)

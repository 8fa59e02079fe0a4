"""CSV and TSV: one record for each row, the first row names the columns; a cell without text is null."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stages.corpora.containers.record import Record
from stages.corpora.containers.text import open_text, reading_text
from stages.corpora.json_rows import MOST_CHARACTERS
from stages.corpora.source import RowFault, UnusableData

_DELIMITERS = "\t,;|"


class _Lines:
    """The lines of a file, with a bound on what one row of cells takes: a quoted cell may go over many lines."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.taken = file, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MOST_CHARACTERS - self.taken + 1):
            self.taken += len(line)
            if self.taken > MOST_CHARACTERS:
                raise csv.Error(f"the row has more than {MOST_CHARACTERS:,} characters")
            yield line


def iter_delimited_records(path: Path, shown: str) -> Iterator[Record]:
    """Yields the rows; one with more or fewer cells than the first row has a fault.

    Raises UnusableData for a file without rows, with a column name twice, or with a row that never ends.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MOST_CHARACTERS))
    with reading_text(shown):
        with open_text(path) as file:
            delimiter = _find_delimiter(file.readline(MOST_CHARACTERS), path)
        with open_text(path) as file:
            yield from _iter_rows(_Lines(file), delimiter, shown)


def _find_delimiter(head: str, path: Path) -> str:
    if ".tsv" in path.suffixes:
        return "\t"
    return max(_DELIMITERS[1:] + _DELIMITERS[0], key=head.count) if any(one in head for one in _DELIMITERS) else ","


def _iter_rows(lines: _Lines, delimiter: str, shown: str) -> Iterator[Record]:
    number = -1  # the first row has the names
    names: list[str] = []
    try:
        for cells in csv.reader(lines, delimiter=delimiter):
            lines.taken = 0
            if not cells:
                continue
            if number < 0:
                names = _check_names(cells, shown)
            elif len(cells) != len(names):
                fault = RowFault(f"{len(cells)} cells, but {len(names)} columns; quote a cell that holds {delimiter!r}")
                yield Record(shown, number, {}, fault)
            else:
                yield Record(shown, number, {name: cell or None for name, cell in zip(names, cells, strict=True)})
            number += 1
    except csv.Error as error:
        raise UnusableData(f"{shown}: row {max(number, 0)}: {error}; correct its quotes") from error
    if number < 1:
        raise UnusableData(f"{shown}: has no rows below the names of its columns; put a file with questions there")


def _check_names(cells: list[str], shown: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UnusableData(f"{shown}: column {twice[0][:80]!r} is there twice; rename one")
    return names

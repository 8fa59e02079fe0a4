"""JSON lists and JSON lines: one record for each object, also of a compressed file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stages.config.plain import abbreviate, make_printable
from stages.corpora.containers.record import Record
from stages.corpora.containers.text import open_text, reading_text
from stages.corpora.json_rows import DECODER, MOST_CHARACTERS, iter_elements
from stages.corpora.source import RowFault, UnusableData

_SPACE = " \t\r\n"


def iter_json_records(path: Path, shown: str) -> Iterator[Record]:
    """Yields the objects of a JSON list, or of a file with one object a line; a broken line is a record with a fault.

    Raises UnusableData for a list that breaks off, and for a file that is neither.
    """
    with reading_text(shown):
        with open_text(path) as file:
            first = _find_first(file)
        with open_text(path) as file:
            yield from _iter_list(file, shown) if first == "[" else _iter_lines(file, shown)


def _find_first(file: TextIO) -> str:
    """Returns the first character that is not white space, "" if there is none."""
    while piece := file.read(1 << 12):
        if text := piece.lstrip(_SPACE):
            return text[0]
    return ""


def _iter_list(file: TextIO, shown: str) -> Iterator[Record]:
    number = 0
    try:
        for number, row in enumerate(iter_elements(file), 1):
            yield _make_record(shown, number - 1, row)
    except json.JSONDecodeError as error:
        raise UnusableData(f"{shown}: row {number} is not JSON: {error.msg}; correct it") from error
    except RecursionError as error:
        raise UnusableData(f"{shown}: row {number} is nested too deeply; remove it") from error


def _iter_lines(file: TextIO, shown: str) -> Iterator[Record]:
    read = 0
    for number, line in enumerate(iter_bounded_lines(file)):
        if line is None:
            read += 1
            yield Record(
                shown, number, {}, RowFault(f"the line has more than {MOST_CHARACTERS:,} characters; split it")
            )
            continue
        text = line.strip(_SPACE)
        if not text:
            continue
        if text == "{" and not read:
            raise UnusableData(
                f"{shown}: one JSON object over many lines; write a list of objects, [...], or one object a line"
            )
        try:
            row = DECODER.decode(text)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            fault = RowFault(f"the line is not JSON: {reason}; write one object a line", "", abbreviate(text))
            yield Record(shown, number, {}, fault)
        else:
            yield _make_record(shown, number, row)
        read += 1
    if not read:
        raise UnusableData(f"{shown}: is empty; put a file with questions there")


def iter_bounded_lines(file: TextIO) -> Iterator[str | None]:
    """Yields the lines; None for one of more than MOST_CHARACTERS, which is passed over."""
    while line := file.readline(MOST_CHARACTERS + 1):
        if len(line) <= MOST_CHARACTERS:
            yield line
            continue
        yield None
        while line and not line.endswith("\n"):
            line = file.readline(MOST_CHARACTERS)


def _make_record(shown: str, number: int, row: object) -> Record:
    if isinstance(row, dict):
        return Record(shown, number, row)
    if isinstance(row, list) and row:  # a table without names: its columns are 0, 1, 2 ...
        return Record(shown, number, {str(place): value for place, value in enumerate(row)})
    kind = "a list" if isinstance(row, list) else make_printable(type(row).__name__)
    return Record(shown, number, {}, RowFault(f"expected an object, found {kind}", "", abbreviate(row)))

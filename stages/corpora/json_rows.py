"""Reads the elements of a list in a JSON file one at a time, so that a file of any length needs little memory."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stages.config.plain import make_printable
from stages.config.regular import explain_decoding, explain_os_error, open_regular
from stages.corpora.source import UnusableData

MOST_CHARACTERS = 16_000_000  # of one row; a row of text and image paths has thousands
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


def _read_integer(digits: str) -> int | float:
    """Returns the number; a float for more than 40 digits, because an int of 5,000 digits takes long or fails."""
    return int(digits) if len(digits) <= 40 else float(digits)


DECODER = json.JSONDecoder(parse_int=_read_integer)


def iter_json_rows(path: Path) -> Iterator[object]:
    """Yields the elements of the JSON list in `path`; raises UnusableData if it is not one in UTF-8."""
    number = 0
    try:
        with os.fdopen(open_regular(path), encoding="utf-8-sig") as file:
            for number, row in enumerate(iter_elements(file), 1):  # noqa: B007 - the place of an error
                yield row
    except UnicodeDecodeError as error:
        raise UnusableData(f"{path}: near row {number}: {explain_decoding(error)}") from error
    except json.JSONDecodeError as error:
        raise UnusableData(f"{path}: row {number} is not JSON: {error.msg}; correct it") from error
    except RecursionError as error:
        raise UnusableData(f"{path}: row {number} is nested too deeply; remove it") from error
    except OSError as error:
        raise UnusableData(f"{path}: {explain_os_error(error)}; put a JSON file there") from error


def iter_elements(file: TextIO) -> Iterator[object]:
    """Yields the elements of the JSON list that is all of an open file. Raises JSONDecodeError, RecursionError."""
    return _Window(file).iter_elements()


class _Window:
    """The part of a file that is being decoded."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0

    def iter_elements(self) -> Iterator[object]:
        """Yields the elements of the list that is all of the file. Raises JSONDecodeError where it is not one."""
        self._expect("[", "expected a list of questions, [...]")
        if self._peek() == "]":
            self._at += 1
        else:
            yield self._decode()
            while self._peek() == ",":
                self._at += 1
                yield self._decode()
            self._expect("]", "expected , or ] after it")
        if self._peek():
            self._fail("expected the end of the file after the list")

    def _expect(self, char: str, message: str) -> None:
        if self._peek() != char:
            self._fail(message)
        self._at += 1

    def _fail(self, message: str) -> None:
        found = make_printable(self._text[self._at : self._at + 20])
        raise json.JSONDecodeError(f"{message}, found {found!r}" if found else f"{message}, found its end", "", 0)

    def _peek(self) -> str:
        """Returns the next character that is not white space, "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _decode(self) -> object:
        """Returns the next value. One that ends where the window ends may go on behind it: then more is read."""
        self._peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._fill():
                    raise
                continue
            if end < len(self._text) or not self._fill():
                self._at = end
                return value

    def _fill(self) -> bool:
        """Reads as much again as there is; returns False at the end of the file and of the longest row."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > MOST_CHARACTERS:
            raise json.JSONDecodeError(f"no end within {MOST_CHARACTERS:,} characters", "", 0)
        more = self._file.read(max(_CHUNK, len(self._text)))
        self._text += more
        return bool(more)

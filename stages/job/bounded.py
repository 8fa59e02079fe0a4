"""Files that others may have written: only regular files of bounded size are opened, and JSON of bounded depth."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.regular import KINDS

SHOWN_CHARACTERS = 80  # of a wrong value in a message


class UnusableFile(ValueError):
    """A file that is not what its place requires; the message says why."""


@dataclass(frozen=True)
class Fault:
    """A file that is passed over as a whole or in part."""

    path: Path
    reason: str  # with row, key, value and remedy

    def __str__(self) -> str:
        return f"{show_path(self.path)}: {self.reason}"


def show_value(value: object) -> str:
    """Returns a value as one line for messages, in ASCII and at most SHOWN_CHARACTERS long."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print more than 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value[:SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def show_path(path: Path) -> str:
    """Returns a path for messages: one line, without signs that change how the line is shown."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def describe_kind(mode: int) -> str:
    """Returns what `st_mode` says that a path is, for messages."""
    return "a link" if stat.S_ISLNK(mode) else KINDS.get(stat.S_IFMT(mode), "a file")


def check_regular(path: Path, max_bytes: int) -> None:
    """Raises UnusableFile if `path` is a link, a pipe, a folder, or larger than `max_bytes`.

    Nothing is opened: opening a pipe waits for a writer. Raises FileNotFoundError if nothing is there.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableFile(f"it can't be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFile(f"it is {describe_kind(found.st_mode)}, not a regular file; put a copy of the file here")
    if found.st_size > max_bytes:
        raise UnusableFile(f"it has {found.st_size:,} bytes, more than the limit of {max_bytes:,}")


def read_bounded(path: Path, max_bytes: int) -> str:
    """Returns the text of a regular UTF-8 file. Raises UnusableFile, or FileNotFoundError if nothing is there."""
    check_regular(path, max_bytes)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            data = file.read(max_bytes + 1)  # the file may grow meanwhile
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableFile(f"it can't be read ({error.strerror})") from error
    if len(data) > max_bytes:
        raise UnusableFile(f"it has more than the limit of {max_bytes:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise UnusableFile(f"it is not UTF-8 text: byte {wrong:#04x} at position {error.start:,}") from error


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text. Raises UnusableFile for anything else, however deep its nesting is."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UnusableFile(f"its JSON is nested too deeply: {show_value(text)}") from error
    except ValueError as error:
        raise UnusableFile(f"it is not JSON ({' '.join(str(error).split())}): {show_value(text)}") from error


def replace_surrogates(text: str) -> str:
    """Returns `text` as valid Unicode: halves of a pair that follow one another are joined, other halves are U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

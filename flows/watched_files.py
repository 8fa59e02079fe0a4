"""Which files DVC can watch: regular ones, and links to them. Others end `dvc repro`, or make it wait for ever."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.config.regular import KINDS, explain_os_error

SPARSE_BYTES = 2**30  # from this length on, a file that is nearly all holes is refused: reading them takes hours


class Unwatchable(ValueError):
    """A file among the inputs that DVC cannot hash; the message names it, with the reason and the remedy."""


def refuse_unwatchable(paths: Iterable[Path]) -> None:
    """Raises Unwatchable for the first pipe, socket, device, dead link or sparse giant in these files and folders.

    DVC follows links to files and leaves out links to folders (measured with DVC 3.67). It waits for ever at a pipe.
    """
    for path in paths:
        for file, reason in _iter_unwatchable(path):
            raise Unwatchable(f"{file}: {reason}; DVC cannot watch it: remove it, or put it elsewhere")


def _iter_unwatchable(path: Path) -> Iterator[tuple[Path, str]]:
    try:
        found = path.stat()
        inner = list(os.scandir(path)) if stat.S_ISDIR(found.st_mode) else []
    except OSError as error:
        yield path, explain_os_error(error)
        return
    if not inner and (reason := _find_reason(found)):
        yield path, reason
    for entry in inner:
        if not entry.is_symlink() and entry.is_dir():
            yield from _iter_unwatchable(Path(entry.path))
            continue
        try:
            reason = None if entry.is_dir() else _find_reason(entry.stat())
        except OSError as error:
            reason = explain_os_error(error)
        if reason:
            yield Path(entry.path), reason


def _find_reason(found: os.stat_result) -> str | None:
    kind = stat.S_IFMT(found.st_mode)
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        sparse = found.st_size >= SPARSE_BYTES and found.st_blocks * 512 < found.st_size / 100
        return f"a file of {found.st_size:,} bytes, nearly all holes" if sparse else None
    return f"{KINDS[kind]}, not a file"

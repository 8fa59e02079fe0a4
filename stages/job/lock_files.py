"""Lock files that say who holds them. The kernel frees a lock when its holder dies, whatever ends it."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, lock_descriptor

from stages.job.files import make_folder


def hold_lock(path: Path, holder: str) -> AbstractContextManager[object]:
    """Locks the file at `path` and writes `holder` into it; a `with` block over the result ends with the release.

    Raises filelock.Timeout when another process holds the lock.
    """

    def write_holder(descriptor: int) -> None:
        text = holder.encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))

    return make_native_lock(path, write_holder).acquire(blocking=False)


def make_native_lock(path: Path, on_acquired: Callable[[int], None] | None = None) -> FileLock:
    """A lock on the file at `path`, not acquired yet; any thread of this process may release it."""
    make_folder(path.parent)
    # Without flock the library would fall back to a file whose existence is the lock: that outlives a killed holder.
    return FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=on_acquired)


def read_holder(path: Path) -> str | None:
    """What the holder of the lock on `path` has written; None when no process holds it, or there is no such file."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        return None if lock_descriptor(file.fileno(), blocking=False) else file.read()

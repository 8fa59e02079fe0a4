"""Whether what a stage writes can be written and kept: asked before it starts, and before DVC takes its result."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from flows.dvc.cache import read_cache
from stages.job.failure import Failure, find_full_disk
from stages.job.job import Job

_LEAST = 1 << 20  # bytes free below which no stage starts: its metrics and dvc.lock would not fit
_PER_FILE = 4096  # bytes of a file in the cache beside its content
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class NoRoom(Failure):
    """A folder that can't be written, or whose disk is full; the message says which and what to do."""


def check_folders(job: Job, *, by_dvc: bool) -> None:
    """Raises NoRoom, one line for each folder that the stage or DVC would write to and can't."""
    folders = [job.root, job.out.parent, job.reports.parent, job.store]
    if by_dvc:
        folders += [job.root / ".dvc" / "tmp", read_cache(job.root).folder]
    if lines := [line for folder in dict.fromkeys(folders) if (line := _find_obstacle(folder))]:
        raise NoRoom("\n".join(dict.fromkeys(lines)))


def _find_obstacle(folder: Path) -> str:
    """Why nothing can be written to `folder`, or made there when it does not exist yet; "" when it can."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        return f"{there} is not a folder, and {folder} is to be one; remove it"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} can't be written (read-only, or of another user); make it writable for this user"
    free = shutil.disk_usage(there).free
    return f"the disk of {there} is full ({free:,} bytes free); make room" if free < _LEAST else ""


def check_cache_room(job: Job) -> None:
    """Raises NoRoom when the disk of DVC's cache can't take the stage's result.

    DVC itself ends with 0 there, and removes the copy of an experiment with its only result. In a copy the result is
    moved to a folder that stays.
    """
    found = read_cache(job.root)
    cache = found.folder
    there = next(place for place in (cache, *cache.parents) if place.exists())
    files = list(_iter_files(job.out))
    linked = found.moves and there.stat().st_dev == job.out.parent.stat().st_dev
    needed = len(files) * _PER_FILE + (0 if linked else sum(file.stat().st_size for file in files)) + _LEAST
    free = shutil.disk_usage(there).free
    if free >= needed and os.access(there, os.W_OK | os.X_OK):
        return
    why = f"{needed:,} bytes needed, {free:,} free" if free < needed else "it can't be written"
    raise NoRoom(
        f"DVC's cache {cache} can't take {job.out.relative_to(job.root)} ({why}); the result is kept in "
        f"{_keep_result(job)}; make room and run it again: answers and the state of training are kept too"
    )


def _keep_result(job: Job) -> Path:
    """Where the result stays when DVC removes the copy: a folder on the same disk, so that nothing is copied."""
    if job.project == job.root:
        return job.out
    kept = job.project / ".dvc" / "tmp" / "kept" / os.environ.get("DVC_EXP_NAME", job.root.name)
    place = kept / job.out.relative_to(job.root)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    job.out.replace(place)
    return place


def _iter_files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    yield from (file for file in folder.rglob("*") if file.is_file())


def explain_write_error(error: BaseException | None) -> str:
    """One line about a write that the disk or its permissions refused; "" for any other error.

    Libraries wrap the error of a full disk or keep only its text, so the whole chain is looked at for it.
    """
    if isinstance(error, OSError) and error.errno in _CLOSED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; it must be readable and writable for this user"
    if found := find_full_disk(error):
        return f"no space left on the disk{_format_place(found)}; make room and run it again"
    return ""


def _format_place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" of {name}" if name is not None else ""

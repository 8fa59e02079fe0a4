"""Whether answers can be stored, found out before they are paid for."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.job.accounts import name_group, name_user
from stages.job.files import make_folder

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP)


class UnusableStore(OSError, ValueError):
    """A store that answers can't be written to; the message names the folder, its owner, its mode and the remedy."""


@contextmanager
def reserve_space(folder: Path, size: int) -> Iterator[None]:
    """Keeps `size` bytes of the disk of `folder` for this process until the block ends; creates the folder.

    The file that holds the space has no name, so that it is gone when the process is. Raises UnusableStore if nothing
    can be written to the folder, or less than `size`.
    """
    try:
        make_folder(folder)
        path = folder / f".{secrets.token_hex(8)}.partial"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            path.unlink()
            os.posix_fallocate(handle, 0, max(size, 1))
        except OSError:
            os.close(handle)
            raise
    except OSError as error:
        raise explain_unwritable(folder, error, size) from error
    try:
        yield
    finally:
        os.close(handle)


def explain_unwritable(folder: Path, error: OSError, size: int = 0) -> UnusableStore:
    """Returns the error for a folder of the store that can't be written: one line with the facts and the remedy."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    found = there.stat()
    free = shutil.disk_usage(there).free
    if error.errno in _FULL:
        needed = f" ({_show_bytes(size)} are needed)" if size else ""
        remedy = f"make room there{needed}, or set RIL_STORE to a folder on a larger disk"
    elif error.errno in _IN_THE_WAY:
        remedy = f"move away {error.filename or folder}, which is no folder"
    else:
        remedy = "correct the permissions (docs/sharing.md, One folder for a team), or set RIL_STORE to another folder"
    return UnusableStore(
        f"{folder}: answers can't be written ({error.strerror or error}); {there} belongs to "
        f"{name_user(found.st_uid)}:{name_group(found.st_gid)} with mode {stat.S_IMODE(found.st_mode):04o}, "
        f"{_show_bytes(free)} are free, this process is of {name_user(os.geteuid())}. "
        f"What was stored before is safe: {remedy}, and run again"
    )


def _show_bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

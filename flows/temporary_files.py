"""A folder for the temporary files of one stage, removed when the stage has ended, however it ended.

vLLM leaves a file behind each engine that is killed, and a killed process removes nothing. So the files of a stage are
in a folder with a lock: the kernel frees the lock when the process dies, and the next stage removes the folder.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from stages.job.lock_files import hold_lock, make_native_lock

_SWEEP_SECONDS = 30.0  # removing what dead stages left takes milliseconds; a stage does not wait longer for another's
_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor"}  # what outlives a stage and is by default a temporary file


class ForeignFolder(RuntimeError):
    """The folder for temporary files is another user's; the message says which and what to do."""


@contextmanager
def keep_temporary_files() -> Iterator[Path]:
    """Makes TMPDIR of this process and its children a folder of their own while the block runs; yields it.

    Folders of stages that died are removed first. Raises ForeignFolder.
    """
    home = open_home(Path(tempfile.gettempdir()))
    before = {name: os.environ.get(name) for name in ("TMPDIR", *_CACHES)}
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(home / folder))
    with make_native_lock(home / "sweep.lock").acquire(timeout=_SWEEP_SECONDS):
        sweep(home)
        own = Path(tempfile.mkdtemp(dir=home))
        lock = hold_lock(own.with_suffix(".lock"), str(os.getpid()))
    with lock:
        _point_to(str(own))
        try:
            yield own
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            _point_to(before["TMPDIR"])
            shutil.rmtree(own, ignore_errors=True)
            own.with_suffix(".lock").unlink(missing_ok=True)


def open_home(parent: Path) -> Path:
    """The folder of this user's stages below `parent`; made for this user alone. Raises ForeignFolder."""
    home = parent / f"ril-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ForeignFolder(
            f"{home} is not a folder that only this user can write to (owner {found.st_uid}, mode "
            f"{stat.filemode(found.st_mode)}); remove it, or set TMPDIR to another folder"
        )
    return home


def sweep(home: Path) -> None:
    """Removes the folders whose stages have died. The caller holds the lock on `home`."""
    for lock in home.glob("*.lock"):
        if lock.name == "sweep.lock":
            continue
        try:
            with hold_lock(lock, ""):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            continue


def _point_to(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # read again from TMPDIR when next asked for

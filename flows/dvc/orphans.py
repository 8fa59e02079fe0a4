"""Experiments whose runner was killed: their copies stay in .dvc/tmp/exps, checkpoints and all, and DVC shows them as
running.

A stage in a copy holds a lock file there that names its machine. A copy is in use while that lock is held, or while a
process of this machine stands in the copy. What a killed run had paid for is elsewhere: answers and training state in
the store, finished stages in DVC's cache. So a copy that nobody uses can go.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from flows.git import read_git_lines, run_git
from stages.job.lock_files import hold_lock, read_holder

_PROCESSES = Path("/proc")
_STASH = "refs/exps/stash"  # where DVC lays an experiment for the second until its copy is made


@dataclass(frozen=True)
class Orphan:
    """A copy that no process of this machine uses."""

    folder: Path
    name: str  # of the experiment; "" where DVC did not get to write it down
    host: str  # the machine of its last stage; "" where none had started

    @property
    def here(self) -> bool:
        """Whether it is certain that nobody uses it: processes of other machines can't be seen."""
        return self.host in ("", socket.gethostname())

    def __str__(self) -> str:
        if self.here:
            name = self.name or "(unnamed)"
            return f"experiment {name}: its run was killed; the next one that ril starts removes its copy {self.folder}"
        return (
            f"experiment {self.name}: its last stage ran on {self.host}, which can't be seen from here; if it does not "
            f"run there any more: rm -r {self.folder}"
        )


def hold_copy(root: Path) -> AbstractContextManager[object]:
    """Says, for a `with` block, that a stage of this machine runs in the copy at `root`. Raises filelock.Timeout."""
    return hold_lock(_lock_file(root), f"{socket.gethostname()} {os.getpid()}")


def list_orphans(root: Path) -> list[Orphan]:
    """The copies of the project at `root`, of this user, that no process of this machine uses.

    None where /proc does not tell where processes stand.
    """
    if not _PROCESSES.joinpath("self").exists():
        return []
    places = {Path(os.path.realpath(place)) for place in _iter_working_folders()}
    starting = any(place == root.resolve() for place in _iter_dvc_folders())
    names = _read_names(root)
    found = []
    for folder in sorted(_iter_copies(root)):
        lock = _lock_file(folder)
        used = read_holder(lock) is not None or any(place.is_relative_to(folder.resolve()) for place in places)
        if not used and not (starting and not lock.exists()) and folder.stat().st_uid == os.geteuid():
            host = lock.read_text(encoding="utf-8").partition(" ")[0] if lock.exists() else ""
            found.append(Orphan(folder, names.get(folder, ""), host))
    return found


def remove_orphans(root: Path) -> list[str]:
    """Removes what killed runs of this machine left: copies, and an experiment that DVC had not started yet.

    Returns a line for each. The caller holds the lock of experiments, so that none is just being started here.
    """
    lines = []
    for orphan in list_orphans(root):
        if orphan.here:
            remove_copy(root, orphan.folder)
            lines.append(f"removed the copy of experiment {orphan.name or '(unnamed)'}, whose run was killed")
    left = [line.split()[0] for line in read_git_lines(root, "for-each-ref", "--format=%(refname)", _STASH)]
    if left and not any(place == root.resolve() for place in _iter_dvc_folders()):
        run_git(root, "update-ref", "-d", _STASH)  # DVC would run it in place of the next experiment
        lines.append("removed an experiment that was killed before it had a copy")
    return lines


def remove_copy(root: Path, folder: Path) -> None:
    """Removes a copy of the project at `root` and DVC's note that an experiment runs in it."""
    shutil.rmtree(folder, ignore_errors=True)
    for note in _iter_notes(root):
        if _read_note(note).get("root_dir") == str(folder):
            shutil.rmtree(note.parent)


def find_copy(root: Path, name: str) -> Path | None:
    """The copy in which experiment `name` runs, or ran until its runner was killed."""
    return next((folder for folder, one in _read_names(root).items() if one == name and folder.is_dir()), None)


def list_kept_results(root: Path) -> list[Path]:
    """Folders with results of experiments that DVC's cache could not take (flows/room.py)."""
    return sorted((root / ".dvc" / "tmp" / "kept").glob("*"))


def _lock_file(copy: Path) -> Path:
    return copy / ".dvc" / "tmp" / "ril-stage.lock"


def _iter_copies(root: Path) -> Iterator[Path]:
    folder = root / ".dvc" / "tmp" / "exps"
    yield from (path for path in (*folder.glob("standalone/tmp*"), *folder.glob("tmp*")) if path.is_dir())


def _iter_notes(root: Path) -> Iterator[Path]:
    yield from (root / ".dvc" / "tmp" / "exps" / "run").glob("*/*.run")


def _read_note(path: Path) -> dict[str, str]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # killed while it was written
        return {}
    return told if isinstance(told, dict) else {}


def _read_names(root: Path) -> dict[Path, str]:
    """The name of the experiment in each copy."""
    notes = [_read_note(path) for path in _iter_notes(root)]
    copies = (root / ".dvc" / "tmp" / "exps").resolve()
    found = {Path(note.get("root_dir", "/")): str(note.get("name", "")) for note in notes}
    return {folder: name for folder, name in found.items() if folder.resolve().is_relative_to(copies)}


def _iter_working_folders() -> Iterator[str]:
    """The folder in which each process of this user stands."""
    for link in _PROCESSES.glob("[0-9]*/cwd"):
        try:
            yield str(link.readlink())
        except OSError:  # it has ended, or is another user's
            continue


def _iter_dvc_folders() -> Iterator[Path]:
    """The folder in which each dvc of this user stands."""
    for process in _PROCESSES.glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"exp" in words and any(word.endswith(b"dvc") for word in words):
                yield (process / "cwd").resolve()
        except OSError:  # it has ended, or is another user's
            continue

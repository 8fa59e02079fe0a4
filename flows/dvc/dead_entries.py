"""DVC's table of who reads and writes which outs: what dead processes have left in it.

A dvc that is killed leaves its entries. DVC passes over an entry if it needs the same out and no process has that id.
But ids are given again, soon after the start of a container: then DVC says "is busy" for as long as that other process
lives. A dvc that is killed while it writes the table, or that meets a full disk then, leaves half a table, and DVC
refuses to work at all.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from stages.job.files import write_text

# {"write": {path: entry}, "read": {path: [entry, ...]}}, an entry has pid and cmd; the second one is of experiments.
_TABLES = (Path(".dvc", "tmp", "rwlock"), Path(".dvc", "tmp", "exps", "rwlock"))


def remove_dead_entries(root: Path) -> None:
    """Removes from the tables of the project in `root` the entries of processes that live no more, and half a table.

    Entries of living processes stay; half a table does while a dvc works in `root`.
    """
    for path in (root / each for each in _TABLES):
        table = _read(path)
        if table is None or not all(_is_alive(entry) for entry in _list_entries(table)):  # rarely
            _clean(path, root)


def _clean(path: Path, root: Path) -> None:
    from dvc.lock import LockError, make_lock

    # A dvc that holds the lock for longer than 3 s is named by the one that is started next.
    with suppress(LockError), make_lock(f"{path}.lock", tmp_dir=str(path.parent)):
        table = _read(path)
        if table is not None:
            write_text(path, json.dumps(_keep_alive(table)))
        elif not _works_here(root):
            path.unlink()


def _read(path: Path) -> Mapping[str, Any] | None:
    """The table at `path`; None when it is not whole, or no table of DVC's."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text())
        return table if all(map(_is_entry, _list_entries(table))) else None
    except (ValueError, RecursionError, AttributeError, TypeError):  # no JSON, or lists where DVC has objects
        return None


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str):
        return False
    return isinstance(entry.get("pid"), int) and 0 < entry["pid"] < 2**31


def _list_entries(table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from table.get("write", {}).values()
    for entries in table.get("read", {}).values():
        yield from entries


def _keep_alive(table: Mapping[str, Any]) -> Mapping[str, Any]:
    reads = {path: [entry for entry in entries if _is_alive(entry)] for path, entries in table.get("read", {}).items()}
    return {
        "write": {path: entry for path, entry in table.get("write", {}).items() if _is_alive(entry)},
        "read": {path: entries for path, entries in reads.items() if entries},
    }


def _is_alive(entry: Mapping[str, Any]) -> bool:
    """Whether the process of an entry lives: one with its id, and with the arguments that the entry has."""
    try:
        words = psutil.Process(entry["pid"]).cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # another user's process: DVC decides
    return set(entry["cmd"].split()[1:]) <= set(" ".join(words).split())


def _works_here(root: Path) -> bool:
    """Whether a dvc of this user works in `root`."""
    for process in psutil.process_iter():
        try:
            if "dvc" in " ".join(process.cmdline()) and Path(process.cwd()) == root.resolve():
                return True
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return False

"""dvc.lock when a dvc was killed while it wrote it, or met a full disk then: the first part of a file.

DVC writes the file in place, from its first stage to its last, whenever a stage is done; that takes a second. Where the
part that is left reads as a whole file, DVC takes all results after it for out of date and makes them again; else it
reads nothing. So a copy is kept whenever a stage starts, and what a cut file has lost comes from that copy.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from stages.job.files import write_text

_KEPT = Path(".dvc", "tmp", "dvc.lock.whole")
_FOUND = Path(".dvc", "tmp", "dvc.lock.cut")
_ENTRY = re.compile(r"^  [^\s#-].*:$", re.MULTILINE)  # the first line of a stage's entry
_CONFLICT = re.compile(r"^(<<<<<<<|=======|>>>>>>>)", re.MULTILINE)
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Entries = Mapping[str, Mapping[str, Any]]


def keep_whole_lock(root: Path) -> None:
    """Copies dvc.lock of the project in `root` to where `mend_cut_lock` looks for it, unless it is cut off."""
    path = root / "dvc.lock"
    if path.is_file() and (root / ".dvc" / "tmp").is_dir() and not is_cut(root):
        write_text(root / _KEPT, path.read_text(encoding="utf-8"))


def is_cut(root: Path) -> bool:
    """Whether dvc.lock of the project in `root` is the first part of one. A file with conflict marks is not."""
    path = root / "dvc.lock"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    return text is not None and not _CONFLICT.search(text) and _read_before_cut(text, _read_kept(root)) is not None


def mend_cut_lock(root: Path) -> str:
    """Gives a dvc.lock that is cut off the entries back that it has lost; returns what to say, "" if it is whole.

    A file that a dvc writes at this moment is left to that dvc.
    """
    if not is_cut(root):
        return ""
    from dvc.lock import LockError, make_lock

    path, temporary = root / "dvc.lock", root / ".dvc" / "tmp"
    with suppress(LockError), make_lock(str(temporary / "lock"), tmp_dir=str(temporary)):
        text, kept = path.read_text(encoding="utf-8", errors="replace"), _read_kept(root)
        if (there := _read_before_cut(text, kept)) is None:
            return ""
        stages = {**{name: there.get(name, entry) for name, entry in kept.items()}, **there}
        write_text(root / _FOUND, text)
        write_text(path, yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False, allow_unicode=True))
        return (
            f"dvc.lock was cut off, since a dvc was killed while it wrote it: it has {len(there)} entries, and "
            f"{len(stages) - len(there)} come from the copy that the last stage made when it started; "
            f"{_FOUND} is what was found"
        )
    return ""


def _read_kept(root: Path) -> Entries:
    path = root / _KEPT
    return _parse(path.read_text(encoding="utf-8", errors="replace")) or {} if path.is_file() else {}


def _read_before_cut(text: str, kept: Entries) -> Entries | None:
    """The complete entries of a file that is cut off; None when it is whole.

    It is cut off where it does not read as a dvc.lock, in the middle of its last entry, or where it has the first
    entries of `kept` and lacks the others.
    """
    stages = _parse(text)
    if stages is None:
        starts = [match.start() for match in _ENTRY.finditer(text)]
        before = (_parse(text[:start]) for start in reversed(starts))
        return next((found for found in before if found is not None), {})
    if not stages:
        return {} if kept else None
    *others, last = stages
    if not text.endswith("\n") or not _is_complete(stages[last], kept.get(last, {})):
        return {name: stages[name] for name in others}
    changed = [name for name, entry in stages.items() if kept.get(name) != entry]
    return stages if [*stages] == [*kept][: len(stages)] and len(stages) < len(kept) and len(changed) <= 1 else None


def _parse(text: str) -> Entries | None:
    """The entries of a dvc.lock by stage; None where DVC would not read it."""
    try:
        told = yaml.load(text, _LOADER)  # nosec B506: either is a safe loader
    except yaml.YAMLError:
        return None
    stages = told.get("stages") if isinstance(told, dict) else None
    if stages is None:  # nothing but the first lines
        return {}
    return stages if isinstance(stages, dict) and all(map(_is_readable, stages.values())) else None


def _is_readable(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(one, dict) and one.get("path") for one in _list_files(entry))


def _is_complete(entry: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether an entry has all that DVC writes: outs come last. `before` is the stage's entry in the copy."""
    if not entry.get("outs") or not all(_MD5.fullmatch(str(one.get("md5"))) for one in _list_files(entry)):
        return False
    return len(entry["outs"]) >= len(before.get("outs", ())) and all("size" in one for one in entry["outs"])


def _list_files(entry: Mapping[str, Any]) -> list[Any]:
    return [one for field in ("deps", "outs") for one in entry.get(field) or ()]

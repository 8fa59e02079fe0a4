"""What `dvc.lock` says: the hashes of everything that each recorded result was made from. DVC writes it."""

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.job.repository import RecordedOut

_DVC_OWN = (".git", ".hg", ".dvc", ".dvcignore")  # what DVC leaves out of a folder without being told


def read_locked_stages(root: Path) -> dict[str, Any]:
    """The entries of dvc.lock by stage; none when there is no dvc.lock yet."""
    path = root / "dvc.lock"
    return parse_locked_stages(path.read_bytes()) if path.is_file() else {}


def parse_locked_stages(text: bytes) -> dict[str, Any]:
    """The same from the content of a dvc.lock."""
    # The C loader takes 0.1 s where the loader of params.yaml takes 3; nothing is read here that they read differently.
    told = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}  # nosec B506: either is a safe loader
    return dict(told.get("stages") or {})


def read_locked_outs(root: Path) -> dict[str, RecordedOut]:
    """Every out that dvc.lock records, by its path."""
    outs = [out for stage in read_locked_stages(root).values() for out in stage.get("outs", [])]
    return {out["path"]: RecordedOut(out["md5"], out.get("size", 0), out.get("nfiles", 1)) for out in outs}


def read_ignored_names(root: Path) -> Sequence[str]:
    """Patterns of names that DVC leaves out of folders: those of .dvcignore that hold no path."""
    path = root / ".dvcignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return (*_DVC_OWN, *(line for line in lines if line and not line.startswith("#") and "/" not in line))


def walk_files(path: Path, ignored: Sequence[str]) -> Iterator[Path]:
    """The files of a folder that DVC counts, in any order (no link to a folder is followed); of a file itself."""
    if not path.is_dir():
        yield path
        return
    for inner in path.iterdir():
        if not any(fnmatch.fnmatch(inner.name, pattern) for pattern in ignored) and not (
            inner.is_symlink() and inner.is_dir()
        ):
            yield from walk_files(inner, ignored)


def combine_md5s(path: Path, md5s: Mapping[Path, str]) -> str:
    """The md5 that dvc.lock has of `path`: of a folder from those of its files (`md5s`)."""
    if path.is_file():
        return md5s[path]
    rows = [{"md5": md5, "relpath": file.relative_to(path).as_posix()} for file, md5 in md5s.items()]
    listing = json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


# A result that a stage wrote outside DVC, or that a failed run left, is not the one in dvc.lock, though it may have the
# same length. A mark says so until DVC records that stage again.


def _mark(root: Path, target: str) -> Path:
    return root / ".ril" / "unrecorded" / target


def mark_unrecorded(root: Path, target: str) -> None:
    """From now on what is on disk of `target` may differ from what dvc.lock says of it."""
    path = _mark(root, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def mark_recorded(root: Path, target: str) -> None:
    """What is on disk of `target` is what dvc.lock says, or will say when DVC has recorded this run."""
    _mark(root, target).unlink(missing_ok=True)


def is_recorded(root: Path, target: str) -> bool:
    """Whether nothing but DVC has written the result of `target` here."""
    return not _mark(root, target).exists()

"""Whether the files of a checkpoint are those that its card names: answers are stored under that name.

All files are hashed when a checkpoint is opened for the first time in a folder. Their lengths and times are then kept
in the store, outside of the stages' outputs, and later only files whose length or times differ are read again:

    <store>/checkpoints/<hash of the identity>.json    {"files": {name: sha256}, "seen": {folder: {name: stamp}}}

A hub model's identity is its commit. Its files are compared with what was there first and, where the hub names them by
their sha256 (weights), with that.
"""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.job.hashes import hash_file, hash_json

CARD = "ril.json"
_READERS = 4  # files that are hashed at a time: one core hashes 1 to 2 GB/s, a disk may deliver more
_NO_PART_IN_ANSWERS = re.compile(
    r"(^|/)\.[^/]+|\.md$|(^|/)(LICENSE|NOTICE)[^/]*$|\.(png|jpe?g|gif|svg|log)$", re.IGNORECASE
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 12  # hexadecimal digits of a hash in a message
Stamp = list[int]  # length, modification and change time in nanoseconds


def list_content(weights: Path) -> list[Path]:
    """Returns the files of a checkpoint folder except its card, sorted."""
    return sorted(file for file in weights.rglob("*") if file.is_file() and file.name != CARD)


def hash_files(weights: Path, files: Iterable[Path]) -> dict[str, str]:
    """Returns the sha256 of each file by its name relative to `weights`."""
    listed = list(files)
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip((_name(weights, file) for file in listed), readers.map(hash_file, listed), strict=True))


def hash_content(weights: Path) -> str:
    """Returns the sha256 over names and contents of all files of a checkpoint folder except its card."""
    return combine_hashes(hash_files(weights, list_content(weights)))


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Returns the identity of a checkpoint from the hashes of its files."""
    return hash_json([[name, hashes[name]] for name in sorted(hashes, key=lambda name: Path(name))])


def check_content(weights: Path, identity: str, store: Path, remedy: str, hub: bool = False) -> None:
    """Raises Failure when files of `weights` that decide answers are not those of `identity`.

    The message names a file with its recorded and found hash, and `remedy`. With `hub` the identity is a commit.
    """
    record = store / "checkpoints" / f"{hash_json(identity)}.json"
    known = _read_record(record)
    stamps = {_name(weights, file): _read_stamp(file) for file in list_content(weights)}
    seen = known["seen"].get(str(weights), {})
    if stamps == seen:
        return
    unread = [weights / name for name, stamp in stamps.items() if seen.get(name) != stamp or name not in known["files"]]
    hashes = {name: known["files"].get(name, "") for name in stamps} | hash_files(weights, unread)
    expected = known["files"]
    if hub and not expected:
        expected = {name: _find_hub_hash(weights / name) or found for name, found in hashes.items()}
    if hub or combine_hashes(hashes) != identity:
        if not expected:
            raise Failure(
                f"the files in {weights} are not those of the card: sha256 recorded {identity[:_SHOWN]}, found "
                f"{combine_hashes(hashes)[:_SHOWN]} over all files; {remedy}"
            )
        if changed := _find_changed(expected, hashes):
            raise Failure(_explain_change(weights, changed, expected, hashes) + f"; {remedy}")
        hashes = expected  # of files that decide nothing, those of the identity
    keep_content(weights, identity, store, hashes, stamps)


def keep_content(
    weights: Path, identity: str, store: Path, hashes: Mapping[str, str], stamps: Mapping[str, Stamp] | None = None
) -> None:
    """Remembers that `weights` holds the files of `identity`, so that they need not be read again."""
    record = store / "checkpoints" / f"{hash_json(identity)}.json"
    stamps = stamps or {name: _read_stamp(weights / name) for name in hashes}
    seen = {folder: found for folder, found in _read_record(record)["seen"].items() if Path(folder).is_dir()}
    with suppress(OSError):  # a store that is read-only or full costs time only
        write_json(record, {"files": dict(hashes), "seen": {**seen, str(weights): dict(stamps)}})


def _find_changed(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    different = [name for name in names if expected.get(name) != found.get(name)]
    return [name for name in different if not _NO_PART_IN_ANSWERS.search(name)]


def _explain_change(weights: Path, changed: list[str], expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    name = changed[0]
    before, now = (hashes.get(name, "no such file")[:_SHOWN] for hashes in (expected, found))
    more = f" (and {len(changed) - 1} more files)" if len(changed) > 1 else ""
    return f"{weights / name} has changed{more}: sha256 recorded {before}, found {now}; this is another model"


def _read_record(record: Path) -> dict[str, Any]:
    """Returns the record; an empty one when there is none or it is damaged, so that all files are read."""
    with suppress(OSError, ValueError):
        known = read_json(record)
        if isinstance(known.get("files"), dict) and isinstance(known.get("seen"), dict):
            return known
    return {"files": {}, "seen": {}}


def _read_stamp(file: Path) -> Stamp:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _find_hub_hash(file: Path) -> str | None:
    """Returns the sha256 that the hub's cache has named the file by; None for small files, which have a git hash."""
    name = file.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _name(weights: Path, file: Path) -> str:
    return str(file.relative_to(weights))

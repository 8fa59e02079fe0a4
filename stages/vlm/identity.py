"""Whether the files of a checkpoint are those that its card names: answers are stored under that name.

The identity of a checkpoint is a hash over names and contents of the files that decide its answers: weights, config,
tokenizer, chat template, processor, generation settings. What a download leaves beside them (README, licence, pictures,
.git, .cache/huggingface, weights in other formats) is no part of it: copies of one model that came in different ways
have one identity.

These files are hashed when a checkpoint is opened for the first time in a folder. Their lengths and times are then kept
in the store, outside of the stages' outputs, and later only files whose length or times differ are read again:

    <store>/checkpoints/<hash of the identity>.json    {"files": {name: sha256}, "seen": {folder: {name: stamp}}}
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.job.hashes import hash_file, hash_json
from stages.vlm.contents import READ

CARD = "ril.json"
_READERS = 4  # files that are hashed at a time: one core hashes 1 to 2 GB/s, a disk may deliver more
_NO_PART_IN_ANSWERS = re.compile(r"(^|/)\.[^/]+|(^|/)(README|LICENSE|NOTICE)[^/]*$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 12  # hexadecimal digits of a hash in a message
Stamp = list[int]  # length, modification and change time in nanoseconds


def list_content(weights: Path) -> list[Path]:
    """Returns the files of a checkpoint folder that decide its answers, sorted; its card is none of them."""
    return sorted(file for file in weights.rglob("*") if decides_answers(_name(weights, file)) and file.is_file())


def decides_answers(name: str) -> bool:
    """Whether a file of a checkpoint decides answers; `name` is relative to its folder.

    These are the files that a hub model is downloaded with, less hidden ones and words for people.
    """
    if Path(name).name == CARD or _NO_PART_IN_ANSWERS.search(name):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in READ)


def hash_files(weights: Path, files: Iterable[Path]) -> dict[str, str]:
    """Returns the sha256 of each file by its name relative to `weights`."""
    listed = list(files)
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip((_name(weights, file) for file in listed), readers.map(hash_file, listed), strict=True))


def hash_content(weights: Path) -> str:
    """Returns the identity of a checkpoint folder: the sha256 over names and contents of the files that decide."""
    return combine_hashes(hash_files(weights, list_content(weights)))


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Returns the identity of a checkpoint from the hashes of its files."""
    return hash_json([[name, hashes[name]] for name in sorted(hashes, key=lambda name: Path(name))])


def check_hub_names(weights: Path, hashes: Mapping[str, str], remedy: str) -> None:
    """Raises Failure when a file in the hub's cache is not the one that the hub sent: its name there is its sha256.

    Only large files have such names; those of others are git's hashes.
    """
    named = {name: _find_hub_hash(weights / name) or found for name, found in hashes.items()}
    if changed := _find_changed(named, hashes):
        raise Failure(_explain_change(weights, changed, named, hashes) + f"; {remedy}")


def check_content(weights: Path, identity: str, store: Path, remedy: str) -> None:
    """Raises Failure when files of `weights` that decide answers are not those of `identity`.

    The message names a file with its recorded and found hash, and `remedy`.
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
    if combine_hashes(hashes) != identity:
        if not expected:
            raise Failure(
                f"the files in {weights} are not those of the card: sha256 recorded {identity[:_SHOWN]}, found "
                f"{combine_hashes(hashes)[:_SHOWN]} over all files; {remedy}"
            )
        if changed := _find_changed(expected, hashes):
            raise Failure(_explain_change(weights, changed, expected, hashes) + f"; {remedy}")
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
    return [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]


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
            known["files"] = {name: found for name, found in known["files"].items() if decides_answers(name)}
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

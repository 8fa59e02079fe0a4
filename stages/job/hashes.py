"""Hashes of files and of values."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def hash_file(path: Path) -> str:
    """Returns the sha256 of the bytes of one file, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_md5(path: Path) -> str:
    """Returns the md5 of the bytes of one file, as hex: the hash that DVC and data set publishers use."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def hash_json(value: Any) -> str:
    """Returns the sha256 of a value in canonical JSON (sorted keys, no spaces), as hex."""
    return hashlib.sha256(_write_canonical(value).encode()).hexdigest()


def hash_json_list(values: Iterable[Any]) -> str:
    """Returns `hash_json` of the list of these values, of which it keeps one at a time."""
    digest = hashlib.sha256(b"[")
    for number, value in enumerate(values):
        digest.update(f"{',' * (number > 0)}{_write_canonical(value)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _write_canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

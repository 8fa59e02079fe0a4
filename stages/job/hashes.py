"""Hashes of files and of values."""

import hashlib
import json
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22


def hash_file(path: Path) -> str:
    """sha256 of the bytes of one file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a value written as canonical JSON (sorted keys, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

"""Hashes of files and of values."""

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_file(path: Path) -> str:
    """sha256 of the bytes of one file, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_md5(path: Path) -> str:
    """md5 of the bytes of one file, as hex: what DVC and publishers of data sets give."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a value written as canonical JSON (sorted keys, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

"""What a stage was given, as one hash: to resume only the same work, and to notice inputs that move while it runs.

DVC hashes dependencies and parameters when a stage *ends*; an edit in the middle would be recorded as if it had been
used (measured; see docs/architecture.md). So a stage takes its fingerprint when it starts and compares when it ends.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
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


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    inside = (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sorted(file for file in inside if file.name != ".gitignore")  # DVC writes .gitignore files beside outs


def hash_json(value: Any) -> str:
    """sha256 of a value written as canonical JSON (sorted keys, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Fingerprint:
    """The state of files and values at one moment.

    `of` reads everything once; `moved` hashes again only those files whose length or modification time changed since.
    """

    def __init__(self, root: Path, paths: Iterable[Path], values: Mapping[str, Any]) -> None:
        self._root = root
        self._paths = list(paths)
        self._values = hash_json(values)
        self._stats: dict[Path, tuple[int, int]] = {}
        self._hashes: dict[Path, str] = {}
        self._read()
        self.digest = self._digest()

    def _read(self) -> None:
        found = [file for path in self._paths for file in _files(path)]
        for file in set(self._hashes) - set(found):
            del self._hashes[file]
        for file in found:
            stat = file.stat()
            signature = (stat.st_size, stat.st_mtime_ns)
            if file not in self._hashes or self._stats[file] != signature:
                self._stats[file] = signature
                self._hashes[file] = hash_file(file)

    def _digest(self) -> str:
        rows = sorted((self._name(file), digest) for file, digest in self._hashes.items())
        return hash_json([self._values, rows])

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self._root) if file.is_relative_to(self._root) else file)

    def moved(self, values: Mapping[str, Any]) -> list[str]:
        """What differs now from when this fingerprint was taken: names of files, and "params.yaml" if `values`
        differ.
        """
        before = dict(self._hashes)
        self._read()
        changed = {file for file in before.keys() | self._hashes.keys() if before.get(file) != self._hashes.get(file)}
        names = [self._name(file) for file in sorted(changed)]
        return ["params.yaml", *names] if hash_json(values) != self._values else names

"""What a stage was given, as one hash: to resume only the same work, and to notice inputs that move while it runs.

DVC hashes dependencies and parameters when a stage *ends*; an edit in the middle would be recorded as if it had been
used (measured; see docs/architecture.md). So a stage takes its fingerprint when it starts and compares when it ends.

An input that another stage made is not read for that: dvc.lock has its md5. Whatever no lock knows is hashed as DVC
hashes it, so that the fingerprint stays the same when DVC records it later; of much data, what DVC has hashed just
before it started the stage is taken from its memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.dvc.known_hashes import read_known_md5s
from flows.lockfile import (
    combine_md5s,
    is_recorded,
    mark_recorded,
    read_ignored_names,
    read_locked_outs,
    walk_files,
)
from stages.config.table import STAGES
from stages.job.hashes import hash_json, hash_md5
from stages.job.repository import RecordedOut

MUCH = 2**30  # bytes, from which on it pays to ask DVC's memory, which takes a second: reading takes 2.5
Stamp = tuple[int, int]  # length and modification time in nanoseconds


class Fingerprint:
    """The state of inputs and parameters at one moment."""

    def __init__(self, root: Path, paths: Iterable[Path], values: Mapping[str, Any]) -> None:
        """`paths` are files and folders that exist, `values` the parameters."""
        self._root, self._values = root, hash_json(values)
        self._parts: dict[Path, _Part] = {}
        known, ignored = read_locked_outs(root), read_ignored_names(root)
        rows = []
        for path in paths:
            for whole in self._iter_wholes(path):
                if whole not in self._parts:
                    self._parts[whole] = self._make_part(whole, known.get(self._relative_name(whole)), ignored)
                rows.append((self._relative_name(path), self._relative_name(whole), self._parts[whole].md5))
        self.digest = hash_json([self._values, sorted(rows)])

    def _iter_wholes(self, path: Path) -> Iterator[Path]:
        """What is hashed for `path`: the results of stages that it is, is in, or holds; else itself."""
        folder, *parts = Path(self._relative_name(path)).parts
        if folder != "data" or not parts or parts[0] not in STAGES:
            yield path
            return
        depth = 2 if STAGES[parts[0]].items else 1
        if len(parts) < depth:
            yield from sorted(inner for inner in path.iterdir() if inner.is_dir())
        else:
            yield self._root.joinpath(folder, *parts[:depth])

    def _make_part(self, whole: Path, recorded: RecordedOut | None, ignored: Sequence[str]) -> "_Part":
        if recorded is None:
            return _Part(self._root, whole, None, ignored)
        target = "@".join(Path(self._relative_name(whole)).parts[1:])
        part = _Part(self._root, whole, recorded if is_recorded(self._root, target) else None, ignored)
        if part.md5 == recorded.md5:
            mark_recorded(self._root, target)
        return part

    def _relative_name(self, file: Path) -> str:
        return str(file.relative_to(self._root) if file.is_relative_to(self._root) else file)

    def find_changes(self, values: Mapping[str, Any]) -> list[str]:
        """What differs now from when this fingerprint was taken: names of files, and "params.yaml" if `values`
        differ.

        Hashes only where lengths or modification times differ.
        """
        names = [self._relative_name(file) for part in self._parts.values() for file in part.find_changes()]
        return [*(["params.yaml"] if hash_json(values) != self._values else []), *sorted(names)]


class _Part:
    """A file or folder that is hashed as a whole."""

    def __init__(self, root: Path, path: Path, recorded: RecordedOut | None, ignored: Sequence[str]) -> None:
        """Without `recorded`, or where it is about other lengths, it is hashed."""
        self._root, self._path, self._ignored = root, path, ignored
        self._stamps = self._look()
        self._md5s: dict[Path, str] = {}
        here = (sum(length for length, _ in self._stamps.values()), len(self._stamps))
        known = recorded is not None and (recorded.length, recorded.files) == here
        self.md5 = recorded.md5 if recorded and known else self._hash(self._stamps)

    def _look(self) -> dict[Path, Stamp]:
        stats = {file: file.stat() for file in walk_files(self._path, self._ignored)} if self._path.exists() else {}
        return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}

    def _hash(self, files: Iterable[Path]) -> str:
        """The md5 of the whole, after hashing `files`: reads those that DVC has not hashed."""
        files = list(files)
        much = sum(self._stamps[file][0] for file in files) >= MUCH and (self._root / ".dvc").is_dir()
        known = read_known_md5s(self._root, files) if much else {}
        self._md5s |= {file: known.get(file) or hash_md5(file) for file in files}
        return combine_md5s(self._path, self._md5s)

    def find_changes(self) -> list[Path]:
        """Its files that are not as they were; none when their content is the same."""
        before, self._stamps = self._stamps, self._look()
        changed = {file for file in before.keys() | self._stamps.keys() if before.get(file) != self._stamps.get(file)}
        if not changed:
            return []
        if not self._stamps:
            return sorted(changed)
        old = self._md5s
        self._md5s = {file: md5 for file, md5 in old.items() if file in self._stamps}
        if self._hash(changed & self._stamps.keys() if old else self._stamps) == self.md5:
            return []
        return sorted(file for file in changed if not old or old.get(file) != self._md5s.get(file))

"""Which code made a result: `code.json` beside the metrics of a stage, kept by Git together with dvc.lock.

    reports/<stage>[/<item>]/code.json       what the code said when the stage ran (flows/digest.py); DVC ignores it
    reports/<stage>[/<item>]/accepted.json   changes of code that `ril accept --because` let pass since

DVC knows code by the bytes of its files. So `code.json` holds these md5s as well: where they are those of dvc.lock, the
record is about the result that DVC has. A result can also come from DVC's run cache or from an experiment, without a
run of the stage here; for these a copy of each record is in the store, under the hash of its md5s.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.closure import find_reached_files, list_code_dependencies
from flows.digest import Code, compare_code, digest_files, hash_code
from flows.lockfile import combine_md5s, read_ignored_names, walk_files
from stages.job.files import read_json, write_json, write_text
from stages.job.hashes import hash_json, hash_md5

CODE = "stages"  # below this folder dependencies are code; anything else is data
_RECORD, _ACCEPTED = "code.json", "accepted.json"


def is_code(path: str) -> bool:
    """Whether a dependency, as dvc.yaml writes it, is code of stages."""
    return Path(path).parts[:1] == (CODE,)


@dataclass(frozen=True)
class CodeRecord:
    """The code that made a result."""

    watched: Mapping[str, str]  # md5 of what DVC watches, by path
    code: Code


class BadRecord(ValueError):
    """A code.json that can't be read; the message says which and what to do."""


class WatchedCode:
    """The code that DVC watches for one stage, as it is in the files."""

    def __init__(self, root: Path, stage: str, inputs: Iterable[str] = ()) -> None:
        """`inputs` are further paths of code that parameters name, as `world.code` does.

        Raises ComputedImport, and SyntaxError for a file that can't be read.
        """
        self._root = root
        self.paths = sorted({*list_code_dependencies(root, stage), *inputs})
        self._files = [file for file in find_reached_files(root, f"stages.{stage}") if self._is_watched(file)]
        self.code = self._read()

    def _is_watched(self, file: Path) -> bool:
        return any(file.is_relative_to(path) for path in self.paths)

    def _read(self) -> Code:
        return digest_files(self._root, (file for file in self._files if (self._root / file).is_file()))

    @property
    def digest(self) -> str:
        """Hash of what the code says; comments, docstrings and help texts change nothing."""
        return hash_code(self.code)

    def find_changes(self) -> list[str]:
        """Definitions that are no longer as they were when this was made, as file::name."""
        try:
            now = self._read()
        except SyntaxError as error:
            return [str(error.filename)]
        return [f"{one.file}::{one.name}" if one.name else one.file for one in compare_code(self.code, now)]

    def record(self) -> CodeRecord:
        """The code with the md5s of its files as they are now."""
        ignored = read_ignored_names(self._root)
        watched = {}
        for path in self.paths:
            full = self._root / path
            watched[path] = combine_md5s(full, {file: hash_md5(file) for file in walk_files(full, ignored)})
        return CodeRecord(watched, self.code)


def write_code_record(record: CodeRecord, reports: Path, store: Path) -> None:
    """Writes code.json into the folder `reports` of a stage, and a copy of it into the store."""
    write_text(reports / _RECORD, _format_record(record))
    with suppress(OSError):  # a read-only or full store still serves its answers, and the other copy is there
        keep_copy(record, store)


def keep_copy(record: CodeRecord, store: Path) -> None:
    """Writes a record into the store alone."""
    write_text(_copy(store, record.watched), _format_record(record))


def _format_record(record: CodeRecord) -> str:
    """JSON with one line a file: 30 kB for the loop, and a diff of Git shows which files changed."""
    parts = []
    for name, rows in {"code": record.code, "watched": record.watched}.items():
        lines = [f" {json.dumps(key)}: {json.dumps(rows[key], sort_keys=True)}" for key in sorted(rows)]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_code_record(reports: Path, store: Path, locked: Mapping[str, str]) -> CodeRecord | None:
    """The record of the result whose code dvc.lock knows by the md5s `locked`; None when there is none.

    Raises BadRecord for a file that is not what `write_code_record` writes.
    """
    for path in (reports / _RECORD, _copy(store, locked)):
        if path.is_file():
            try:
                value = read_json(path)
                found = CodeRecord(value["watched"], value["code"])
            except (ValueError, KeyError) as error:  # Git's marks of a conflict, for example
                raise BadRecord(f"{path} is no record of code ({error}); restore it or delete it") from error
            if all(locked.get(name) == md5 for name, md5 in found.watched.items()):
                return found
    return None


def _copy(store: Path, watched: Mapping[str, str]) -> Path:
    return store / "code" / f"{hash_json(dict(watched))[:32]}.json"


@dataclass(frozen=True)
class Accepted:
    """Changes of code that somebody let pass, so that the result is of older code than dvc.lock says."""

    because: str
    changes: Sequence[str]
    code: str  # hash of the code that was accepted


def read_accepted(reports: Path) -> list[Accepted]:
    """What was accepted for the stage with the folder `reports` since it last ran."""
    path = reports / _ACCEPTED
    return [Accepted(**row) for row in read_json(path)["accepted"]] if path.is_file() else []


def add_accepted(reports: Path, one: Accepted) -> None:
    """Adds to what was accepted. DVC sees this file where a later stage depends on the folder, as `report` does."""
    rows = [row for row in read_accepted(reports) if row != one]
    write_json(reports / _ACCEPTED, {"accepted": [vars(row) for row in (*rows, one)]})


def forget_accepted(reports: Path) -> None:
    """A stage that has run owes nothing to older code."""
    (reports / _ACCEPTED).unlink(missing_ok=True)

"""Stored answers on disk: immutable parquet segments, written whole or not at all, by many processes without a lock.

A segment is written once and never changed, so that two stores merge by copying files. Where two segments hold the same
key, the older one counts (created_at, then file name): whoever reads gets the same answer. What cannot be read is named
and passed over.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.job.files import replacing

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # answer_key of the request's key and the sample
        ("request_key", pa.string()),
        ("sample", pa.int32()),
        ("question_id", pa.string()),  # for people; the same answer may serve other ids
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("created_at", pa.int64()),  # nanoseconds since 1970, one value a segment
    ]
)


@dataclass(frozen=True)
class StoredAnswer:
    """One answer as it is served."""

    key: str
    request_key: str
    sample: int
    question_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    engine: str
    engine_version: str


class Store:
    """The answers in one folder. Keys are held in memory, answers are read when they are asked for."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Reads the keys of all segments; `say` is told about each that cannot be read."""
        self.folder = folder
        self._say = say
        self._segments: dict[str, tuple[int, list[str]]] = {}  # file name: created_at, keys in the order of the rows
        self._index: dict[str, tuple[str, int]] = {}  # key: file name, row
        for file in sorted(folder.glob("*.parquet")):
            self._open(file)
        self._order()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def _open(self, file: Path) -> None:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            if not parquet.schema_arrow.equals(SCHEMA):
                raise pa.ArrowInvalid("its columns are not those of stored answers")
            table = parquet.read(columns=["key", "created_at"])
        except (pa.ArrowException, OSError) as error:
            self._skip(file, error)
            return
        created = table["created_at"].to_pylist()
        self._segments[file.name] = (min(created, default=0), table["key"].to_pylist())

    def _skip(self, file: Path, error: Exception) -> None:
        reason = " ".join(str(error).split())
        self._say(f"{file} cannot be read and is passed over; its answers count as missing ({reason})")

    def _order(self) -> None:
        """Builds the index: of equal keys the one in the smallest (created_at, file name) counts."""
        self._index = {}
        for name in sorted(self._segments, key=lambda name: (self._segments[name][0], name)):
            for row, key in enumerate(self._segments[name][1]):
                self._index.setdefault(key, (name, row))

    def fetch(self, keys: Iterable[str]) -> dict[str, StoredAnswer]:
        """The stored answers among `keys`; a segment that turns out to be damaged is named, and counts as not there."""
        found: dict[str, StoredAnswer] = {}
        wanted = set(keys)
        while wanted:
            by_segment: dict[str, list[tuple[int, str]]] = {}
            for key in wanted & self._index.keys():
                name, row = self._index[key]
                by_segment.setdefault(name, []).append((row, key))
            damaged = [name for name, rows in by_segment.items() if not self._read(name, sorted(rows), found)]
            if not damaged:
                break
            for name in damaged:
                del self._segments[name]
            self._order()
            wanted -= found.keys()  # what a damaged segment held may be in another one too
        return found

    def _read(self, name: str, rows: Sequence[tuple[int, str]], found: dict[str, StoredAnswer]) -> bool:
        file = self.folder / name
        try:
            table = pq.read_table(file, schema=SCHEMA, page_checksum_verification=True)
            taken = table.take([row for row, _ in rows]).drop_columns(["created_at"]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            self._skip(file, error)
            return False
        for values in taken:
            values["token_ids"] = tuple(values["token_ids"])
            found[values["key"]] = StoredAnswer(**values)
        return True

    def append(self, answers: Sequence[StoredAnswer]) -> None:
        """Writes `answers` as one new segment; when this returns they are on disk, and none of them can be lost."""
        if not answers:
            return
        newest = max((created for created, _ in self._segments.values()), default=0)
        created = max(time.time_ns(), newest + 1)  # a clock that was set back makes nothing older than what is here
        name = f"{created:020d}-{secrets.token_hex(4)}.parquet"
        table = pa.Table.from_pylist([{**asdict(answer), "created_at": created} for answer in answers], schema=SCHEMA)
        with replacing(self.folder / name) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        _sync_folder(self.folder)
        self._segments[name] = (created, [answer.key for answer in answers])
        for row, answer in enumerate(answers):
            self._index.setdefault(answer.key, (name, row))


def _sync_folder(folder: Path) -> None:
    """Makes the new name of a file survive a power cut, not only its content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

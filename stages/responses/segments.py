"""Segments: immutable parquet files of answers, published atomically, in an order that does not depend on clocks.

A segment's name is `<order>-<home>.parquet`. Of two answers with one key, the one in the smaller order counts. A writer
claims the next free order by linking its finished file to that name, which fails if the name is taken. Therefore orders
appear one after another, and no later segment can precede one that was already served. `home` is a random id of the
folder, so that files of two folders never have the same name. A compacted segment
(`<order>-<home>-c<last>-<random>.parquet`) takes the position of the first segment that it replaces; `last` is the
largest order among them. Orders and names are never reused, because a slow reader or a second compaction may still hold
the old ones.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.job.files import sync_folder

ANSWERS_PER_ROW_GROUP = 1024  # rows read for one answer; a wave is one group
LAST = 10**20 - 1  # order of files without one in their name
_NAME = re.compile(r"(\d{20})-[0-9a-f]{8}(?:-c(\d{20})-[0-9a-f]{8})?\.parquet")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

FIRST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # `derive_answer_key` of the request's key and the sample
        ("request_key", pa.string()),
        ("sample", pa.int32()),
        ("question_id", pa.string()),  # informative; the same answer may serve other ids
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("created_at", pa.int64()),  # nanoseconds since 1970; informative, not used for ordering
    ]
)
ADDED = [
    pa.field("model", pa.string()),  # name on the hub, or of the checkpoint's folder
    pa.field("revision", pa.string()),  # commit on the hub, or hash of the checkpoint's files
    pa.field("seconds", pa.float32()),  # share of the wave's wall time
    pa.field("request", pa.string()),  # JSON of messages and image hashes, the input of the key
]
ANSWER_SCHEMA = pa.schema([*FIRST_SCHEMA, *ADDED])


class UnreadableSegment(ValueError):
    """A file that is not a complete segment; the message gives the reason."""


@dataclass(frozen=True)
class Segment:
    """One file, described by its name."""

    path: Path
    order: int
    last: int  # largest order that this file replaces; 0 if its name has none
    compacted: bool

    @property
    def precedence(self) -> tuple[int, bool, str]:
        """Sort key, smallest first: of two answers with one key, the first counts."""
        return self.order, not self.compacted, self.path.name


def parse_segment(path: Path) -> Segment:
    """Returns the segment at `path`; a file with another name format sorts after all others."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return Segment(path, LAST, 0, compacted=False)
    return Segment(path, int(named[1]), int(named[2] or named[1]), compacted=named[2] is not None)


def list_segments(folder: Path) -> list[Segment]:
    """Returns the segments in `folder`, sorted by precedence.

    Lists the folder again until nothing vanishes between two listings: a listing during the end of a compaction may
    lack both the old segments and the new one.
    """
    found = _list_names(folder)
    while found - (again := _list_names(folder)):
        found = again
    return sorted((parse_segment(folder / name) for name in again), key=lambda segment: segment.precedence)


def _list_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    names = (entry.name for entry in os.scandir(folder) if entry.is_file())  # not a link to a removed file
    return {name for name in names if name.endswith(".parquet") and not name.startswith(".")}


@contextmanager
def open_scratch(folder: Path) -> Iterator[Path]:
    """Yields a path in `folder` for a file that readers ignore, and removes the file afterwards if it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{secrets.token_hex(8)}.partial"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def publish(folder: Path, write: Callable[[Path], None]) -> Segment:
    """Writes one segment by `write` and gives it the next order; on return it is on disk and visible.

    Raises OSError, which names the folder and the remedy, if the segment cannot be written; then nothing is visible.
    """
    with open_scratch(folder) as temporary:
        try:
            write(temporary)
            sync_file(temporary)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{folder}: answers can't be written ({' '.join(str(error).split())}); what was stored before is safe: "
                "make room or correct the permissions, and run again",
            ) from error
        path = _link_next(temporary, folder)
    sync_folder(folder)
    return parse_segment(path)


def publish_for(folder: Path, temporary: Path, replaced: Sequence[Segment]) -> Segment:
    """Publishes the finished file `temporary` as a compacted segment in the position of the replaced segments."""
    sync_file(temporary)
    order, last = replaced[0].order, max(segment.last for segment in replaced)
    path = folder / f"{order:020d}-{_read_folder_id(folder)}-c{last:020d}-{secrets.token_hex(4)}.parquet"
    temporary.rename(path)
    sync_folder(folder)
    return parse_segment(path)


def _link_next(temporary: Path, folder: Path) -> Path:
    """Links `temporary` to the first free name after all existing segments."""
    home = _read_folder_id(folder)
    while True:
        path = folder / f"{max((segment.last for segment in list_segments(folder)), default=0) + 1:020d}-{home}.parquet"
        claimed = _claim_name(temporary, path)
        if claimed is None:  # two concurrent writers may get the same order here; then names decide
            path = path.with_name(f"{path.name[:20]}-{secrets.token_hex(4)}.parquet")
            temporary.rename(path)
        if claimed is not False:
            return path


def _claim_name(temporary: Path, path: Path) -> bool | None:
    """Links the file to `path`; returns False if it is taken, None without hard links (object storage, FUSE)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    return True


def _read_folder_id(folder: Path) -> str:
    """Returns eight hex digits unique to this folder, not to its copies: stored in a file named after its inode."""
    file = folder / f".home-{folder.stat().st_ino}"
    if not file.exists():
        with open_scratch(folder) as temporary:
            temporary.write_text(secrets.token_hex(4))
            sync_file(temporary)
            if _claim_name(temporary, file) is None:
                temporary.rename(file)
    return file.read_text()


def sync_file(path: Path) -> None:
    """Flushes a file to disk, so that its content survives a power failure."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_segment(path: Path, table: pa.Table) -> None:
    """Writes `table`, which has SCHEMA, as one parquet file with a checksum for each page."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=ANSWERS_PER_ROW_GROUP)


def rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yields the rows of `tables` in tables of `rows` rows, the last one smaller; nothing if there are no rows."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table]).combine_chunks()
        whole = waiting.num_rows - waiting.num_rows % rows
        for start in range(0, whole, rows):
            yield waiting.slice(start, rows)
        waiting = waiting.slice(whole)
    if waiting is not None and waiting.num_rows:
        yield waiting


def write_files(tables: Iterable[pa.Table], rows_per_file: int, next_path: Callable[[], Path]) -> list[Path]:
    """Writes rows with SCHEMA into files of `rows_per_file` rows; `next_path` returns the path of each."""
    files: list[Path] = []
    groups = rechunk(tables, ANSWERS_PER_ROW_GROUP)
    for first in groups:
        files.append(next_path())
        with pq.ParquetWriter(files[-1], ANSWER_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for group in chain([first], islice(groups, rows_per_file // ANSWERS_PER_ROW_GROUP - 1)):
                writer.write_table(group, row_group_size=ANSWERS_PER_ROW_GROUP)
    return files


def open_segment(path: Path) -> pq.ParquetFile:
    """Opens the file at `path`; raises UnreadableSegment if it is not a segment, FileNotFoundError if it is gone."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UnreadableSegment(_describe_error(error)) from error
    if not any(file.schema_arrow.equals(schema) for schema in (ANSWER_SCHEMA, FIRST_SCHEMA)):
        raise UnreadableSegment("its columns are not those of stored answers")
    return file


def read_groups(file: pq.ParquetFile, groups: list[int], columns: list[str]) -> pa.Table:
    """Returns `columns` of some row groups, null where an older segment lacks them. Raises UnreadableSegment."""
    there = [name for name in columns if name in file.schema_arrow.names]
    try:
        table = file.read_row_groups(groups, columns=there, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableSegment(_describe_error(error)) from error
    for name in columns:
        if name not in there:
            table = table.append_column(
                ANSWER_SCHEMA.field(name), pa.nulls(table.num_rows, ANSWER_SCHEMA.field(name).type)
            )
    return table.select(columns)


def decode_samples(column: pa.ChunkedArray) -> np.ndarray:
    """Returns sample numbers; raises UnreadableSegment when one is missing."""
    if column.null_count:
        raise UnreadableSegment("the number of a sample is missing")
    return column.to_numpy()


def decode_digests(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns the first 16 bytes of hex keys as rows of two integers; raises UnreadableSegment if one is not a sha256.

    Half a sha256 identifies requests: among 1e9 requests, the chance of a collision is 1e-21.
    """
    array = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if array.null_count:
        raise UnreadableSegment("a key is missing")
    if not len(array):
        return np.empty((0, 2), np.uint64)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != 64).any():
        raise UnreadableSegment("a key is no sha256")
    letters = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 64)[:, :32]
    values = _make_hex_table()[letters]
    if (values > 15).any():
        raise UnreadableSegment("a key is no sha256")
    return ((values[:, 0::2] << 4) | values[:, 1::2]).view(">u8").astype(np.uint64)


def _make_hex_table() -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for value, letter in enumerate(b"0123456789abcdef"):
        table[letter] = value
    return table


def _describe_error(error: Exception) -> str:
    return " ".join(str(error).split())

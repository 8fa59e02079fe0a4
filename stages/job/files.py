"""Atomic file writes: temporary file, fsync, rename. Neither a reader nor a crash leaves a partial file."""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 100  # random access: one row of a 23 MB file costs 14 ms in groups of 100, 131 ms in one group
BYTES_PER_GROUP = 1 << 22  # and fewer rows of photos: a row anywhere costs its row group
RESTORE = "restore it (dvc checkout, git checkout) or run its stage again"  # what a stage has written
ROWS_PER_SHARD = 1000  # a growing data set adds shards and leaves existing ones unchanged


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents where they are missing; in a shared folder they are shared, too.

    A folder with the setgid bit is one that a group shares: the kernel gives its group to all that is made inside, and
    here its permissions of the group as well, whatever the umask is. Without the bit, the umask decides.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    share_with_group(folder)


def share_with_group(path: Path) -> None:
    """Gives a new file or folder the group's permissions of its parent folder, if that has the setgid bit."""
    parent = path.parent.stat().st_mode
    found = path.stat()
    shared = parent & (stat.S_IRWXG if path.is_dir() else stat.S_IRGRP | stat.S_IWGRP)
    wanted = found.st_mode | shared | (stat.S_ISGID if path.is_dir() else 0)
    if parent & stat.S_ISGID and wanted != found.st_mode and found.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(wanted))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success the file is renamed to `path`."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")  # not to be guessed in a shared folder
    try:
        yield temporary
        sync_file(temporary)
        share_with_group(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder next to `path`; on success it replaces `path`."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                sync_file(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flushes a file to disk, so that its content survives a power failure."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder, so that the new name of a file in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # object storage through FUSE has no folders to sync
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in the JSON file `path`. Raises ValueError with the remedy when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); {RESTORE}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}; {RESTORE}")
    return value


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Names the parquet file that the block reads: raises ValueError with the remedy when it is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # OSError: pages that can't be decompressed
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not readable as parquet ({reason}); {RESTORE}") from error


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes one parquet file; equal tables give equal bytes (pyarrow is pinned for that)."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)


def write_shards(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    complete: Callable[[Any], Mapping[str, Any]] = dict,
) -> None:
    """Writes `rows` into `folder` as part-00000.parquet and so on, `ROWS_PER_SHARD` rows each, at least one file.

    `complete` makes each row shortly before it is written: `ROWS_PER_GROUP` rows are in memory. A row group has at most
    that many rows, and about `BYTES_PER_GROUP` bytes.
    """
    source = iter(rows)
    groups = iter(lambda: [complete(row) for row in islice(source, ROWS_PER_GROUP)], [])
    first = next(groups, [])  # no rows are a file, too
    for part in count():
        with (
            replacing(folder / f"part-{part:05d}.parquet") as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for group in chain([first], islice(groups, ROWS_PER_SHARD // ROWS_PER_GROUP - 1)):
                table = pa.Table.from_pylist(group, schema=schema)
                fitting = BYTES_PER_GROUP * table.num_rows // max(table.nbytes, 1)
                writer.write_table(table, row_group_size=max(1, min(ROWS_PER_GROUP, fitting)))
        first = next(groups, [])
        if not first:
            return


def read_shards(folder: Path) -> pa.Table:
    """Returns all rows of the parquet files in `folder`, in the order of their names.

    Raises FileNotFoundError with the folder's name if there are none, ValueError with the name of a damaged one.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no parquet file in {folder}")
    tables = []
    for file in files:
        with reading_parquet(file):
            tables.append(pq.read_table(file))
    with reading_parquet(folder):  # files of different columns
        return pa.concat_tables(tables)

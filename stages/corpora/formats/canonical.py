"""Canonical parquet: the format in which this project stores questions."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.plain import make_printable
from stages.config.questions import Questions
from stages.config.regular import explain_os_error, open_regular
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import Canonical, SourceRow, UnusableData

MOST_GROUP_BYTES = 2**31  # of a row group without compression; one of 1,000 photos has 500 MB
BATCH_BYTES = 2**26
FEWEST_ROWS, MOST_ROWS = 16, 1000  # of a batch
MOST_ROW_BYTES = 2**28
OPTIONAL = ("answers", "scorer")  # of QUESTION_SCHEMA; files that were written before these were added lack them
NEEDED = [name for name in QUESTION_SCHEMA.names if name not in OPTIONAL]
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of `questions.path` (a file or a folder of shards), a batch at a time.

    Raises UnusableData with the file for one that is not parquet, is damaged, or has columns of other types.
    """
    number = 0
    for file in _list_files(root / questions.path):
        for batch in _iter_batches(file):
            for place in range(len(batch)):
                yield SourceRow(f"row {number}", partial(_take_row, batch, place))
                number += 1


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UnusableData(f"questions.path {path}: no file *.parquet in this folder; name the folder of the shards")
    return files


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into UnusableData."""
    try:
        yield
    except OSError as error:
        raise UnusableData(f"{file}: {make_printable(explain_os_error(error))}; write the file again") from error
    except MemoryError as error:
        raise UnusableData(f"{file}: a row becomes more than {MOST_GROUP_BYTES:,} bytes; split it") from error
    except (pa.ArrowException, ValueError) as error:
        raise UnusableData(f"{file}: not readable as parquet: {make_printable(str(error))}; write it again") from error


@contextmanager
def _limit_memory(most_bytes: int) -> Iterator[None]:
    """Lets the process grow by at most `most_bytes` in the block; pyarrow raises a MemoryError above that.

    A page of a few bytes can hold thousands of references to one long text; no metadata say what it becomes.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bounds = [here + most_bytes, *(bound for bound in before if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _iter_batches(file: Path) -> Iterator[pa.RecordBatch]:
    with _reading(file):
        os.close(open_regular(file))
        # with a buffer, a column is read piece by piece; without one, all of a row group
        parquet = pq.ParquetFile(file, buffer_size=2**20, page_checksum_verification=True)
        schema, groups = parquet.schema_arrow, parquet.num_row_groups
    _check_schema(file, schema)
    columns = [name for name in QUESTION_SCHEMA.names if name in schema.names]
    for group in range(groups):
        with _reading(file):
            # not its columns: pyarrow 26 aborts the process where their statistics are damaged
            metadata = parquet.metadata.row_group(group)
            missing, group_bytes = metadata.num_rows, metadata.total_byte_size
        rows = _count_rows_of_batch(group_bytes, f"{file}: row group {group}")
        with _reading(file):
            batches = parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
        read = 0
        while True:
            with _reading(file), _limit_memory(MOST_GROUP_BYTES):
                batch = next(batches, None)
            if batch is None:
                break
            missing, read = missing - len(batch), read + batch.nbytes
            if read > MOST_GROUP_BYTES:  # a million references to one long text are a few bytes in the file
                raise UnusableData(f"{file}: row group {group} becomes more than {MOST_GROUP_BYTES:,} bytes; split it")
            yield batch
        if missing:
            raise UnusableData(f"{file}: row group {group} lacks {missing:,} of its rows; write the file again")


def _check_schema(file: Path, schema: pa.Schema) -> None:
    """Raises UnusableData for a column that is missing or has another type than in canonical rows."""
    for field in QUESTION_SCHEMA:
        found = [given.type for given in schema if given.name == field.name]
        if not found and field.name in OPTIONAL:
            continue
        if len(found) != 1:
            fault = "is missing" if not found else f"is there {len(found)} times"
            raise UnusableData(f"{file}: column {field.name!r} {fault}; canonical rows have {', '.join(NEEDED)}")
        if not _is_like(found[0], field.type):
            raise UnusableData(
                f"{file}: column {field.name!r} has type {make_printable(str(found[0]))}, not {field.type}; convert it"
            )


def _is_like(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of type `given` become the same Python values as those of `wanted`. A column of nulls fits all."""
    if pa.types.is_null(given):
        return True
    if pa.types.is_dictionary(given):
        return _is_like(given.value_type, wanted)
    if pa.types.is_list(wanted):
        return any(test(given) for test in _LISTS) and _is_like(given.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        needed = [field for field in wanted if field.name != "path"]  # of an image: only its bytes are used
        return pa.types.is_struct(given) and all(
            given.get_field_index(field.name) >= 0 and _is_like(given.field(field.name).type, field.type)
            for field in needed
        )
    return any(test(given) for test in (_TEXTS if pa.types.is_string(wanted) else _BINARIES))


def _count_rows_of_batch(group_bytes: int, place: str) -> int:
    """Returns how many rows of a row group to read at a time; raises UnusableData for a group that is too large."""
    if group_bytes > MOST_GROUP_BYTES:
        raise UnusableData(
            f"{place} has {group_bytes:,} bytes, more than {MOST_GROUP_BYTES:,}; write it again with row_group_size=100"
        )
    return max(FEWEST_ROWS, min(MOST_ROWS, BATCH_BYTES // max(group_bytes, 1)))


def _take_row(batch: pa.RecordBatch, place: int) -> Canonical:
    row = batch.slice(place, 1)
    if row.nbytes > MOST_ROW_BYTES:
        raise ValueError(f"the row has {row.nbytes:,} bytes, more than {MOST_ROW_BYTES:,}; shorten it")
    values: Canonical = row.to_pylist()[0]
    return (
        dict.fromkeys(OPTIONAL) | values | {key: values[key] or [] for key in ("images", "image_sha256")}
    )  # a question without image has null

"""Parquet in batches of bounded size."""

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.plain import make_printable
from stages.config.regular import explain_os_error, open_regular
from stages.corpora.source import UnusableData

MOST_GROUP_BYTES = 2**31  # of a row group without compression; one of 1,000 photos has 500 MB
BATCH_BYTES = 2**26
FEWEST_ROWS, MOST_ROWS = 16, 1000  # of a batch


@contextmanager
def reading_table(file: Path, kind: str = "parquet") -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into UnusableData."""
    try:
        yield
    except OSError as error:
        raise UnusableData(f"{file}: {make_printable(explain_os_error(error))}; write the file again") from error
    except MemoryError as error:
        raise UnusableData(f"{file}: a row becomes more than {MOST_GROUP_BYTES:,} bytes; split it") from error
    except (pa.ArrowException, ValueError) as error:
        raise UnusableData(f"{file}: not readable as {kind}: {make_printable(str(error))}; write it again") from error


@contextmanager
def limit_memory(most_bytes: int) -> Iterator[None]:
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


def open_parquet(file: Path) -> pq.ParquetFile:
    """Returns a regular file opened as parquet; raises UnusableData if it is none."""
    with reading_table(file):
        os.close(open_regular(file))
        # with a buffer, a column is read piece by piece; without one, all of a row group
        return pq.ParquetFile(file, buffer_size=2**20, page_checksum_verification=True)


def iter_parquet_batches(
    file: Path, check_schema: Callable[[Path, pa.Schema], None], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a parquet file once `check_schema` has accepted its columns; of `columns` those it has.

    Raises UnusableData for a file that is damaged, and for one that becomes too large.
    """
    parquet = open_parquet(file)
    with reading_table(file):
        schema, groups = parquet.schema_arrow, parquet.num_row_groups
    check_schema(file, schema)
    columns = None if columns is None else [name for name in columns if name in schema.names]
    for group in range(groups):
        with reading_table(file):
            # not its columns: pyarrow 26 aborts the process where their statistics are damaged
            metadata = parquet.metadata.row_group(group)
            missing, group_bytes = metadata.num_rows, metadata.total_byte_size
        rows = _count_rows_of_batch(group_bytes, f"{file}: row group {group}")
        with reading_table(file):
            batches = parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
        read = 0
        while True:
            with reading_table(file), limit_memory(MOST_GROUP_BYTES):
                batch = next(batches, None)
            if batch is None:
                break
            missing, read = missing - len(batch), read + batch.nbytes
            if read > MOST_GROUP_BYTES:  # a million references to one long text are a few bytes in the file
                raise UnusableData(f"{file}: row group {group} becomes more than {MOST_GROUP_BYTES:,} bytes; split it")
            yield batch
        if missing:
            raise UnusableData(f"{file}: row group {group} lacks {missing:,} of its rows; write the file again")


def _count_rows_of_batch(group_bytes: int, place: str) -> int:
    """Returns how many rows of a row group to read at a time; raises UnusableData for a group that is too large."""
    if group_bytes > MOST_GROUP_BYTES:
        raise UnusableData(
            f"{place} has {group_bytes:,} bytes, more than {MOST_GROUP_BYTES:,}; write it again with row_group_size=100"
        )
    return max(FEWEST_ROWS, min(MOST_ROWS, BATCH_BYTES // max(group_bytes, 1)))

"""Parquet, arrow files, and folders of `datasets.Dataset.save_to_disk`: records of Python values.

Columns keep what the library `datasets` stores: images are structs of bytes and path, never decoded here. A column of
class labels holds their names.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.config.plain import make_printable
from stages.config.regular import open_regular
from stages.corpora.containers.parquet import (
    MOST_GROUP_BYTES,
    MOST_ROWS,
    iter_parquet_batches,
    limit_memory,
    open_parquet,
    reading_table,
)
from stages.corpora.containers.record import Record
from stages.corpora.source import RowFault, UnusableData

MOST_ROW_BYTES = 2**28
_LABELS = b"ClassLabel"
Labels = Mapping[str, list[str]]


def iter_parquet_records(path: Path, shown: str) -> Iterator[Record]:
    """Yields the rows of a parquet file; raises UnusableData if it is damaged."""
    labels = _find_labels(open_parquet(path).schema_arrow, shown)
    number = 0
    for batch in iter_parquet_batches(path, lambda _file, _schema: None):
        yield from _iter_rows(batch, labels, shown, number)
        number += len(batch)


def count_parquet_rows(path: Path) -> int:
    """Returns the number of rows that the file's metadata say; raises UnusableData if it is damaged."""
    return int(open_parquet(path).metadata.num_rows)


def iter_arrow_records(path: Path, shown: str) -> Iterator[Record]:
    """Yields the rows of an arrow file or stream; raises UnusableData if it is damaged."""
    number = 0
    with reading_table(path, "arrow"):
        os.close(open_regular(path))
        batches, schema = _open_arrow(path)
        labels = _find_labels(schema, shown)
    while True:
        with reading_table(path, "arrow"), limit_memory(MOST_GROUP_BYTES):
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)  # offsets of a damaged file point anywhere
        if batch is None:
            return
        for start in range(0, len(batch), MOST_ROWS):
            yield from _iter_rows(batch.slice(start, MOST_ROWS), labels, shown, number + start)
        number += len(batch)


def _open_arrow(path: Path) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        source.seek(0)
        file = pa.ipc.open_file(source)
        return (file.get_batch(place) for place in range(file.num_record_batches)), file.schema
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    return iter(stream), stream.schema


def _find_labels(schema: pa.Schema, shown: str) -> Labels:
    """Returns the names of the classes of each column of class labels, as `datasets` keeps them beside the schema."""
    described = (schema.metadata or {}).get(b"huggingface", b"")
    if _LABELS not in described:
        return {}
    from datasets import ClassLabel, Features  # local import: takes seconds

    try:
        features = Features.from_arrow_schema(schema)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = make_printable(f"{type(error).__name__}: {error}")
        raise UnusableData(
            f"{shown}: the features that `datasets` wrote are damaged: {reason}; write it again"
        ) from error
    return {name: list(one.names) for name, one in features.items() if isinstance(one, ClassLabel)}


def _iter_rows(batch: pa.RecordBatch, labels: Labels, shown: str, first: int) -> Iterator[Record]:
    for place in range(len(batch)):
        row = batch.slice(place, 1)
        if row.nbytes > MOST_ROW_BYTES:
            fault = RowFault(f"the row has {row.nbytes:,} bytes, more than {MOST_ROW_BYTES:,}; shorten it")
            yield Record(shown, first + place, {}, fault)
            continue
        try:
            values: dict[str, Any] = row.to_pylist()[0]
        except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, a date before year 1
            reason = f"a value cannot be read: {make_printable(str(error))}"
            yield Record(shown, first + place, {}, RowFault(reason))
            continue
        for name, names in labels.items():
            number = values.get(name)
            if isinstance(number, int) and 0 <= number < len(names):
                values[name] = names[number]
        yield Record(shown, first + place, values)

"""Canonical parquet: the format in which this project stores questions."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from stages.config.plain import make_printable
from stages.config.questions import Questions
from stages.corpora.containers.parquet import iter_parquet_batches
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import Canonical, SourceRow, UnusableData

MOST_ROW_BYTES = 2**28
OTHER_KIND = "rows of any form are read by questions.kind: sources"
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of `questions.path` (a file or a folder of shards), a batch at a time.

    Raises UnusableData with the file for one that is not parquet, is damaged, or has columns of other types.
    """
    number = 0
    for file in _list_files(root / questions.path):
        for batch in iter_parquet_batches(file, _check_schema, QUESTION_SCHEMA.names):
            for place in range(len(batch)):
                yield SourceRow(f"row {number}", partial(_take_row, batch, place))
                number += 1


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UnusableData(
            f"questions.path {path}: no file *.parquet in this folder; name the folder of the shards; {OTHER_KIND}"
        )
    return files


def _check_schema(file: Path, schema: pa.Schema) -> None:
    """Raises UnusableData for a column that is missing or has another type than in canonical rows."""
    for field in QUESTION_SCHEMA:
        found = [given.type for given in schema if given.name == field.name]
        if len(found) != 1:
            fault = "is missing" if not found else f"is there {len(found)} times"
            raise UnusableData(
                f"{file}: column {field.name!r} {fault}; canonical rows have {', '.join(QUESTION_SCHEMA.names)}; "
                f"{OTHER_KIND}"
            )
        if not _is_like(found[0], field.type):
            raise UnusableData(
                f"{file}: column {field.name!r} has type {make_printable(str(found[0]))}, not {field.type}; convert it"
                f"; {OTHER_KIND}"
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


def _take_row(batch: pa.RecordBatch, place: int) -> Canonical:
    row = batch.slice(place, 1)
    if row.nbytes > MOST_ROW_BYTES:
        raise ValueError(f"the row has {row.nbytes:,} bytes, more than {MOST_ROW_BYTES:,}; shorten it")
    values: Canonical = row.to_pylist()[0]
    return values | {key: values[key] or [] for key in ("images", "image_sha256")}  # a question without image has null

"""Canonical parquet: the format in which this project stores questions."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from stages.config.questions import Questions
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import SourceRow
from stages.job.files import read_shards


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of `questions.path` (a file or a folder of shards); ValueError if a column is missing."""
    path = root / questions.path
    table = read_shards(path) if path.is_dir() else pq.read_table(path)
    lacking = [name for name in QUESTION_SCHEMA.names if name not in table.column_names]
    if lacking:
        raise ValueError(
            f"questions.path {path}: column {lacking[0]!r} is missing; canonical rows have "
            f"{', '.join(QUESTION_SCHEMA.names)}"
        )
    for number, row in enumerate(table.to_pylist()):
        yield SourceRow(str(row["id"]) if row["id"] is not None else f"row {number}", row.copy)

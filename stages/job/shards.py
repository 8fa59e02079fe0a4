"""Rows of the parquet files that a stage has written, read by number: memory holds one row group, not the folder."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.job.files import reading_parquet


class _Kept(threading.local):
    """The row group that a thread has read last, with its number, by columns."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, ...], tuple[int, pa.Table]] = {}


class Shards:
    """The rows of all parquet files in a folder, in the order of the files' names.

    Holds 16 bytes per row group. Each thread keeps the last row group that it read, for each set of columns, so that
    reading in order opens each row group once. Reading a row anywhere costs its row group, which `write_shards` limits
    in rows and bytes.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the row counts of all files.

        Raises FileNotFoundError if there is no file, ValueError with the name of a damaged one.
        """
        self._files = sorted(folder.glob("*.parquet"))
        if not self._files:
            raise FileNotFoundError(f"no parquet file in {folder}")
        rows: list[int] = []
        firsts: list[int] = []  # number of the first row group of each file
        for file in self._files:
            with reading_parquet(file):
                metadata = pq.read_metadata(file)
            firsts.append(len(rows))
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._firsts = np.array(firsts, np.int64)
        self._ends = np.cumsum(np.array(rows, np.int64))
        self._kept = _Kept()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read_row(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Returns these columns of row number `row`. Raises IndexError if there is no such row."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self._files[0].parent}")
        group = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        found: dict[str, Any] = self._read_group(group, tuple(columns)).slice(row - start, 1).to_pylist()[0]
        return found

    def _read_group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        number, table = self._kept.groups.get(columns, (-1, None))
        if number != group:
            self._kept.groups.pop(columns, None)  # before the next one is read, so that there is never more than one
            place = int(np.searchsorted(self._firsts, group, side="right")) - 1
            file = self._files[place]
            with reading_parquet(file), pq.ParquetFile(file) as opened:
                inside = group - int(self._firsts[place])
                table = opened.read_row_group(inside, columns=list(columns), use_threads=False)
            self._kept.groups[columns] = (group, table)
        return table

    def iter_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields these columns of all rows in order, one file at a time."""
        for file in self._files:
            with reading_parquet(file), pq.ParquetFile(file) as opened:
                table = opened.read(columns=list(columns), use_threads=False)
            yield table

    def iter_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields these columns of all rows in order."""
        for table in self.iter_tables(columns):
            yield from table.to_pylist()

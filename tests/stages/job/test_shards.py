"""Rows of parquet files by number: each row is the one that was written, and only what is asked for is read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.job.files import BYTES_PER_GROUP, ROWS_PER_GROUP, ROWS_PER_SHARD, write_shards
from stages.job.shards import Shards

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("photo", pa.binary())])


def make_rows(count: int, photo_bytes: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"row {n}", "photo": n.to_bytes(4, "big") * (photo_bytes // 4)} for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_GROUP, ROWS_PER_SHARD, 2 * ROWS_PER_SHARD + 150])
def test_rows_come_back_by_number_and_in_order(tmp_path: Path, count: int) -> None:
    rows = make_rows(count, 8)
    write_shards(tmp_path, iter(rows), SCHEMA)
    assert len(list(tmp_path.iterdir())) == max(1, -(-count // ROWS_PER_SHARD))
    shards = Shards(tmp_path)
    assert len(shards) == count
    assert list(shards.iter_rows(["text"])) == [{"text": row["text"]} for row in rows]
    for number in {0, count // 3, count - 1} & set(range(count)):
        assert shards.read_row(number, ["photo", "id"]) == {"photo": rows[number]["photo"], "id": number}
    for number in (-1, count):
        with pytest.raises(IndexError, match=f"row {number} of {count}"):
            shards.read_row(number, ["id"])


def test_large_rows_have_small_row_groups_and_small_rows_the_usual_ones(tmp_path: Path) -> None:
    for name, photo_bytes in (("large", 200_000), ("small", 100)):
        write_shards(tmp_path / name, make_rows(250, photo_bytes), SCHEMA)
        metadata = pq.read_metadata(tmp_path / name / "part-00000.parquet")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        assert sum(group.num_rows for group in groups) == 250
        assert max(group.num_rows for group in groups) == (BYTES_PER_GROUP // 200_020 if name == "large" else 100)


def test_threads_read_their_own_rows(tmp_path: Path) -> None:
    rows = make_rows(400, 40_000)
    write_shards(tmp_path, rows, SCHEMA)
    shards = Shards(tmp_path)
    wanted = [(number * 37) % 400 for number in range(800)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: shards.read_row(number, ["id", "photo"]), wanted))
    assert [row["id"] for row in found] == wanted
    assert all(row["photo"] == rows[row["id"]]["photo"] for row in found)

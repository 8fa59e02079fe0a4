"""Hostile parquet: rows that a stage can use, rejects with a reason, or one line about the file."""

import io
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.containers import parquet
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import UnusableData
from tests.fuzz.mutations import HOSTILE_TEXTS, draw_inputs, measure_peak, mutate_bytes
from tests.fuzz.question_files import ROWS, make_block, make_canonical_rows, try_questions

BLOCK = make_block("rows", "shards", "shards")
COLUMNS: dict[str, Any] = {
    "null": pa.nulls(ROWS),
    "int": pa.array(range(ROWS)),
    "float": pa.array([float("nan"), float("inf"), 0.0, -1e300]),
    "bool": pa.array([True, False] * 2),
    "text": pa.array(["a", "", "\0", "x" * 5000]),
    "half null": pa.array(["a", None] * 2),
    "large text": pa.array(["a"] * ROWS, pa.large_string()),
    "dictionary": pa.array(["a"] * ROWS).dictionary_encode(),
    "bytes": pa.array([b"\xff\xfe"] * ROWS),
    "broken text": pa.Array.from_buffers(pa.string(), ROWS, pa.array([b"\xff\xfe"] * ROWS).buffers()),
    "time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * ROWS),
    "map": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"bytes": b"a", "path": "b"}] * ROWS),
    "list of text": pa.array([["a"], [], None, [None]]),
    "list of int": pa.array([[1]] * ROWS),
    "list of bytes": pa.array([[b"a"]] * ROWS),
    "list of list": pa.array([[["a"]]] * ROWS),
    "images": pa.array([[{"bytes": None, "path": "x.png"}], [None], None, [{"bytes": b"a", "path": None}]]),
    "images without bytes": pa.array([[{"path": "x.png"}]] * ROWS),
    "messages": pa.array([[{"role": "USER", "content": "a"}], [{"role": None, "content": None}], None, [None]]),
    "messages of bytes": pa.array([[{"role": b"user", "content": b"a"}]] * ROWS),
    "empty messages": pa.array([[]] * ROWS, QUESTION_SCHEMA.field("messages").type),
}


def make_table() -> pa.Table:
    return pa.Table.from_pylist(make_canonical_rows(), schema=QUESTION_SCHEMA)


def dump_parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def draw_file(rng: random.Random) -> bytes:
    """A parquet file with another column, text or order, or with mutated bytes."""
    table = make_table()
    options = {
        "compression": rng.choice(("none", "zstd", "snappy", "gzip")),
        "use_dictionary": rng.random() < 0.5,
        "store_schema": rng.random() < 0.5,
        "row_group_size": rng.choice((1, 2, 100)),
        "write_page_checksum": rng.random() < 0.3,
    }
    kind = rng.randrange(6)
    if kind <= 1:
        return mutate_bytes(dump_parquet(table, **options), rng)
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    if kind == 2:
        table = table.set_column(place, name, rng.choice(list(COLUMNS.values())))
    elif kind == 3:
        rows = make_canonical_rows()
        row = rng.choice(rows)
        text = rng.choice(HOSTILE_TEXTS).encode("utf-8", "replace").decode()
        row[rng.choice(("id", "answer", "source", "kind"))] = rng.choice((text, None))
        row["messages"] = [
            {"role": rng.choice(("user", "User", text, None)), "content": rng.choice(("<image>a", text))}
        ]
        table = pa.Table.from_pylist(rows, schema=QUESTION_SCHEMA)
    elif kind == 4:
        table = rng.choice((table.remove_column(place), table.append_column(name, table[name]), table.slice(0, 0)))
    else:
        table = table.select(rng.sample(table.column_names, table.num_columns))
    return dump_parquet(table, **options)


def test_hostile_files_end_in_rows_rejects_or_one_line(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/part-0.parquet").write_bytes(dump_parquet(make_table()))
    outcomes: Counter[str] = Counter()
    for rng in draw_inputs():
        outcomes["files"] += 1
        (tmp_path / "shards/part-1.parquet").write_bytes(draw_file(rng))
        outcomes += try_questions(BLOCK, tmp_path)
    print(f"rows: {dict(outcomes)}")
    assert min(outcomes[outcome] for outcome in ("read", "rejected", "refused")) > 0


@pytest.mark.parametrize("column", QUESTION_SCHEMA.names)
@pytest.mark.parametrize("kind", list(COLUMNS))
def test_a_column_of_any_type_is_read_or_named(tmp_path: Path, column: str, kind: str) -> None:
    (tmp_path / "shards").mkdir()
    table = make_table()
    changed = table.set_column(table.column_names.index(column), column, COLUMNS[kind])
    (tmp_path / "shards/part-0.parquet").write_bytes(dump_parquet(changed))
    found = try_questions(BLOCK, tmp_path)
    assert found == {"refused": 1} or found["read"] + found["rejected"] == ROWS


def test_a_shard_with_another_column_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    table = make_table()
    (tmp_path / "shards/part-0.parquet").write_bytes(dump_parquet(table))
    other = table.set_column(3, "answer", pa.array(range(ROWS)))
    (tmp_path / "shards/part-1.parquet").write_bytes(dump_parquet(other))
    with pytest.raises(UnusableData, match=r"part-1.parquet: column 'answer' has type int64, not string; convert it"):
        list(read_user_rows(BLOCK, tmp_path))


def make_bomb(kind: str) -> pa.Table:
    """A table of gigabytes in a file of kilobytes: many references to one long text."""
    if kind == "rows":
        table = pa.concat_tables([make_table()] * 100)
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), pa.array(["x" * 10_000_000]))
        return table.set_column(3, "answer", texts)
    table = make_table().slice(0, 1)
    items = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 1_000_000]))
    return table.set_column(6, "image_sha256", pa.ListArray.from_arrays(pa.array([0, 2000], pa.int32()), items))


@pytest.mark.parametrize("kind", ["rows", "elements"])
def test_memory_is_bounded_whatever_a_file_becomes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_GROUP_BYTES", 2**28)  # 2 GB take 10 s
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards/part-0.parquet"
    pq.write_table(make_bomb(kind), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000_000
    assert measure_peak(lambda: try_large(tmp_path)) < 700_000_000


def try_large(root: Path) -> None:
    with pytest.raises(UnusableData, match=r"part-0\.parquet"):
        assert all(isinstance(row, UnusableRow) for row in read_user_rows(BLOCK, root))

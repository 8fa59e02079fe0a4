"""Files that stages have written, and that something damaged since: the file and the remedy are named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.corpora.rows import QuestionFolder
from stages.job.files import read_json, read_shards, write_parquet, write_shards

JSON = [
    b"",
    b'{"a": 1',
    b"<<<<<<< HEAD\n",
    b"\xff\xfe{}",
    b"[" * 100_000,
    b"[1]",
    b"null",
    b"1" * 5_000,
]


@pytest.mark.parametrize("content", JSON, ids=range(len(JSON)))
def test_damaged_json_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.json: .*restore it \(dvc checkout, git checkout\)") as caught:
        read_json(path)
    assert not isinstance(caught.value, json.JSONDecodeError)
    assert len(str(caught.value).splitlines()) == 1


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {"cut": content[:40], "empty": b"", "other": b"x" * 500, "half": content[: len(content) // 2]}
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut", "empty", "other", "half"])
def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path, how: str) -> None:
    schema = pa.schema([("id", pa.string()), ("messages", pa.string()), ("image_sha256", pa.list_(pa.string()))])
    rows: list[dict[str, Any]] = [{"id": str(n), "messages": "[]", "image_sha256": []} for n in range(1100)]
    write_shards(tmp_path / "train", rows, schema)
    assert len(QuestionFolder(tmp_path, "train")) == read_shards(tmp_path / "train").num_rows == 1100
    damage(tmp_path / "train" / "part-00001.parquet", how)
    for read in (lambda: read_shards(tmp_path / "train"), lambda: QuestionFolder(tmp_path, "train")):
        with pytest.raises(ValueError, match=r"part-00001\.parquet: not readable as parquet .*restore it"):
            read()


def test_shards_with_other_columns_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"id": ["x"]}))
    write_parquet(tmp_path / "b.parquet", pa.table({"id": [1]}))
    with pytest.raises(ValueError, match="not readable as parquet"):
        read_shards(tmp_path)

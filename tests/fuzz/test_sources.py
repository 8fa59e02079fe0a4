"""Hostile files of kind `sources` in every container: usable rows, rejects, or one line about the file."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.corpora.adapters import read_user_rows
from stages.corpora.source import UnusableData
from tests.fuzz.mutations import draw_inputs, measure_peak, mutate_bytes, mutate_json
from tests.fuzz.question_files import try_questions
from tests.stages.corpora.source_files import CONTAINERS, FORMS, block, draw

FILES = ("json", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "csv", "tar")
WRITABLE = ("json", "jsonl", "csv", "tar")  # hold values of any type in one column


@pytest.mark.parametrize("container", FILES)
def test_mutated_files_are_read_rejected_or_refused(container: str, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    (tmp_path / "images").mkdir()
    for rng in draw_inputs(60):
        form = FORMS[rng.choice(list(FORMS))]
        shown = draw(1) if container in ("parquet", "arrow") else "images/1.png"
        (tmp_path / "images/1.png").write_bytes(mutate_bytes(draw(1), rng) if rng.random() < 0.2 else draw(1))
        rows = [form(number, shown) for number in range(4)]
        mutated = rng.random() < 0.5
        if mutated and container in WRITABLE:
            rows = [row if isinstance(row, dict) else {"a": row} for row in mutate_all(rows, rng)]
        path = CONTAINERS[container][1](rows, tmp_path)
        if not mutated:
            (tmp_path / path).write_bytes(mutate_bytes((tmp_path / path).read_bytes(), rng))
        found += try_questions(block(path, "images"), tmp_path)
    assert found["read"] > 5
    assert found["rejected"] + found["refused"] > 5


def mutate_all(rows: list[dict[str, Any]], rng: random.Random) -> list[Any]:
    mutated = mutate_json(rows, rng)
    return mutated if isinstance(mutated, list) and mutated else [mutated]


def count(folder: Path, path: str) -> Iterator[None]:
    return (None for _ in read_user_rows(block(path), folder))


@pytest.mark.parametrize(("name", "head"), [("q.jsonl.gz", b'{"question": "'), ("q.csv.gz", b'question,answer\n"')])
def test_a_small_file_that_expands_takes_little_memory(name: str, head: bytes, tmp_path: Path) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(60):
            file.write(b"a" * 10**6)

    def read_all() -> None:
        with pytest.raises(UnusableData):
            list(count(tmp_path, name))

    assert measure_peak(read_all) < 100_000_000


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    row = json.dumps({"question": "How many?", "answer": "3", "comment": "x" * 10_000})
    with (tmp_path / "q.jsonl").open("w") as file:
        file.writelines(f"{row}\n" for _ in range(3000))  # 30 MB
    assert measure_peak(lambda: sum(1 for _ in count(tmp_path, "q.jsonl"))) < 20_000_000


@pytest.mark.parametrize(
    "answer", ["A" + " " * 300_000 + "!", " " * 300_000 + "x", "A. " + " " * 300_000, "(" * 300_000]
)
def test_white_space_takes_no_time(answer: str, tmp_path: Path) -> None:
    row = {"question": "?", "options": ["a", "b"], "answer": answer, "image": "iVBORw0KGgo" + " " * 300_000 + "!"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"answer": "a", "image": None}))
    assert try_questions(block("q.jsonl"), tmp_path) == {"rejected": 1, "read": 1}

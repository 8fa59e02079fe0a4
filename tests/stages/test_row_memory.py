"""Stages hold rows, not files: memory does not grow with their number, and columns that nobody needs are not read.

`tests/performance/row_memory.py` measures whole stages in processes of their own.
"""

import pickle
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages import discriminator
from stages.config.warm_start import WarmStart
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row, read_questions
from stages.job.files import write_shards
from stages.job.job import Job
from stages.job.shards import Shards
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader
from stages.warm_start import measure_questions
from tests.performance.row_memory import make_photos

Project = Callable[[str, Mapping[str, Any]], Job]
PHOTO_BYTES = 200_000
MIB = 1 << 20


def write_questions(folder: Path, count: int) -> None:
    """A split `warm_start` of rows with large images and a target."""
    photos = make_photos(56, PHOTO_BYTES)
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "a digit"}]
    rows = (make_canonical_row(f"q{n}", [next(photos)], turns, "1", "s", "k") for n in range(count))
    write_shards(folder / "warm_start", rows, QUESTION_SCHEMA)


@pytest.mark.parametrize("count", [50, 300])
def test_the_questions_of_the_warm_start_take_no_memory(
    loop_project: Project, tmp_path: Path, tiny: Callable[[str], Checkpoint], count: int
) -> None:
    """The images of 300 rows have 60 MB; a row group has 4."""
    checkpoint = tiny("qwen2_5_vl")
    job = loop_project("warm_start", {})
    write_questions(tmp_path / "data/questions", count)
    reader = load_reader(checkpoint)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    learned, rejects = measure_questions(job, reader, checkpoint, job.block(WarmStart))
    arrow = 0
    for place in range(0, count, 7):
        assert len(learned.questions[place].images[0]) == pytest.approx(PHOTO_BYTES, abs=100)
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(learned.questions), len(learned.costs), rejects) == (count, count, [])
    assert peak < 8 * MIB
    assert 0 < arrow < 16 * MIB


def test_images_are_read_only_when_they_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_questions(tmp_path, 5)
    read = record_columns(monkeypatch)
    questions = list(read_questions(tmp_path, "warm_start"))
    assert all(one.text == "What is it?" and len(one.images) == 1 for one in questions)
    assert "images" not in read
    assert questions[0].images[0].startswith(b"\xff\xd8")
    assert "images" in read
    sent = pickle.loads(pickle.dumps(questions[3]))
    assert (sent, sent.images) == (questions[3], tuple(questions[3].images))


@pytest.mark.parametrize("sees", ["response", "question"])
def test_the_discriminator_reads_no_image_that_it_does_not_see(
    loop_project: Project, monkeypatch: pytest.MonkeyPatch, sees: str
) -> None:
    job = loop_project("discriminator", {"discriminator": {"sees": sees, "held_out_share": 0.34}})
    read = record_columns(monkeypatch)
    discriminator.run(job)
    assert "response" in read
    assert ("messages" in read) == (sees == "question")
    assert "images" not in read


def record_columns(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The columns that are read from now on."""
    seen: set[str] = set()
    read_group, iter_tables = Shards._read_group, Shards.iter_tables

    def record_group(shards: Shards, group: int, columns: tuple[str, ...]) -> pa.Table:
        seen.update(columns)
        return read_group(shards, group, columns)

    def record_tables(shards: Shards, columns: Any) -> Any:
        seen.update(columns)
        return iter_tables(shards, columns)

    monkeypatch.setattr(Shards, "_read_group", record_group)
    monkeypatch.setattr(Shards, "iter_tables", record_tables)
    return seen

"""Writes questions of the tiny world in the formats of real benchmarks, so that everybody's first run takes the same
road.

A quarter of the questions each: TinyChoice.tsv (options), tiny_number (parquet), tiny_open (`save_to_disk`),
TinyJudged.tsv.
"""

import base64
import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpora.rows import Question
from stages.job.seeds import derive_seed

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [("id", pa.string()), ("question", pa.string()), ("answer", pa.string()), ("kind", pa.string()), ("image", _IMAGE)]
)


def write_world(folder: Path, questions: Sequence[Question]) -> None:
    """Writes the four benchmarks into `folder`, from the questions with a picture; one that gets none has no file."""
    seen = [question for question in questions if question.images]
    quarters = [seen[start::4] for start in range(4)]
    options = [question for question in quarters[0] if question.answer.isdigit() and len(question.answer) == 1]
    _write_tsv(
        folder / "TinyChoice.tsv", [{**_make_tsv_row(question), **_make_options(question)} for question in options]
    )
    _write_tsv(folder / "TinyJudged.tsv", [_make_tsv_row(question) for question in quarters[3]])
    if quarters[1]:
        (folder / "tiny_number").mkdir(parents=True)
        pq.write_table(_make_table(quarters[1]), folder / "tiny_number" / "test-00000-of-00001.parquet")
    if quarters[2]:
        (folder / "tiny_open").mkdir(parents=True)
        (folder / "tiny_open" / "state.json").write_text(json.dumps({"_split": "test"}), encoding="utf-8")
        file = str(folder / "tiny_open" / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            writer.write_table(_make_table(quarters[2]))


def _make_tsv_row(question: Question) -> dict[str, str]:
    image = base64.b64encode(question.images[0]).decode()
    row = {"index": question.id, "question": question.text, "answer": question.answer, "category": question.kind}
    return {**row, "image": image}


def _make_options(question: Question) -> dict[str, str]:
    """Four digits with the right one among them, and its letter as the answer."""
    choose = random.Random(derive_seed("tiny options", question.id))
    others = [str(digit) for digit in range(10) if str(digit) != question.answer]
    texts = [question.answer, *choose.sample(others, 3)]
    choose.shuffle(texts)
    return {**dict(zip("ABCD", texts, strict=True)), "answer": "ABCD"[texts.index(question.answer)]}


def _make_table(questions: Sequence[Question]) -> pa.Table:
    rows = [
        {
            "id": q.id,
            "question": q.text,
            "answer": q.answer,
            "kind": q.kind,
            "image": {"bytes": q.images[0], "path": None},
        }
        for q in questions
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _write_tsv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

"""Accepted answers and the scorer of a question, from users' files to the question that is scored."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.questions import Questions
from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.answer_kinds import read_reference
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row, make_question, read_questions
from stages.job.files import write_shards

SPLITS = {"warm_start": 1, "imitation": 1, "validation": 1, "test": 1}
TURN = [{"role": "user", "content": "What is it?"}]


def make_block(**changes: Any) -> Questions:
    return Questions(kind="rows", path="rows", images="rows", splits=SPLITS, **changes)


def write_rows(root: Path, rows: list[dict[str, Any]], left_out: tuple[str, ...] = ()) -> None:
    (root / "rows").mkdir()
    table = pa.Table.from_pylist(rows, schema=QUESTION_SCHEMA).drop_columns(list(left_out))
    pq.write_table(table, root / "rows" / "part-0.parquet")


def test_accepted_answers_and_scorer_reach_the_question(tmp_path: Path) -> None:
    row = make_canonical_row("q", [], TURN, "sofa", "s", "k")
    write_rows(tmp_path, [row | {"answers": ["sofa", "couch"]}, row | {"id": "p", "scorer": "vqa"}])
    found = list(read_user_rows(make_block(scorer="anls"), tmp_path))
    assert [(one["answers"], one["scorer"]) for one in found if isinstance(one, dict)] == [
        (["sofa", "couch"], "anls"),
        (None, "vqa"),
    ]
    write_shards(tmp_path / "data" / "test", found, QUESTION_SCHEMA)
    first, second = read_questions(tmp_path / "data", "test")
    assert (first.answers, first.scorer) == (("sofa", "couch"), "anls")
    assert (second.answers, second.scorer) == ((), "vqa")
    assert read_reference(first).texts == ("sofa", "couch")


def test_rows_without_the_two_columns_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path, [make_canonical_row("q", [], TURN, "sofa", "s", "k")], ("answers", "scorer"))
    (found,) = read_user_rows(make_block(), tmp_path)
    assert isinstance(found, dict)
    question = make_question(found, ())
    assert (question.answers, question.scorer) == ((), "auto")


@pytest.mark.parametrize(("key", "value", "reason"), [("scorer", "best", "scorer"), ("answers", ["\x00"], "U+0000")])
def test_what_is_no_scorer_or_answer_rejects_the_row(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    write_rows(tmp_path, [make_canonical_row("q", [], TURN, "sofa", "s", "k") | {key: value}])
    (found,) = read_user_rows(make_block(), tmp_path)
    assert isinstance(found, UnusableRow)
    assert reason in found.reason

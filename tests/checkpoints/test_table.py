"""The table of checkpoints by stage: how it is written, and that the page shows what is on record."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.table import (
    BACK,
    BEGIN,
    END,
    PAGE,
    RECORD,
    WAYS,
    find_reason,
    make_row,
    read_rows,
    write_page,
    write_table,
)
from tests.checkpoints.walk import Project, StageRun


def make_rows(*stages: tuple[str, str, int]) -> list[dict[str, Any]]:
    return [
        make_row(name, "one", StageRun(stage, code, 12.34, 1.06, "warning\nError: no\nbye"))
        for name, stage, code in stages
    ]


def test_a_line_has_the_stages_of_one_checkpoint_and_refusals_follow() -> None:
    rows = make_rows(("big", "questions", 0), ("big", "model@student", 0), ("big", "ril", 0), ("odd", "ril", 1))
    table, refusals = write_table(rows).split("\n\n")
    head, rule, big, odd = table.splitlines()
    assert head.split(" | ")[1] == "model"
    assert {line.count("|") for line in (head, rule, big, odd)} == {10}
    assert big == "| big, one | 12, 1.1 |  |  |  |  |  | 12, 1.1 |  |"
    assert odd.count("refused") == 1
    assert refusals == "- odd, ril: Error: no"


@pytest.mark.parametrize(
    ("said", "reason"),
    [("a\nValueError: b\nc", "ValueError: b"), ("a\nb\n\n", "b"), ("", "nothing")],
)
def test_the_reason_is_the_line_of_the_error(said: str, reason: str) -> None:
    assert find_reason(StageRun("ril", 1, 1.0, 1.0, said)) == reason


def test_a_later_run_of_a_stage_replaces_an_earlier_one(tmp_path: Path) -> None:
    log, record, page = tmp_path / "table.jsonl", tmp_path / "record.jsonl", tmp_path / "page.md"
    assert read_rows(log) == []
    record.write_text("".join(json.dumps(row) + "\n" for row in make_rows(("a", "ril", 1), ("b", "ril", 0))))
    log.write_text("".join(json.dumps(row) + "\n" for row in make_rows(("a", "ril", 0), ("c", "ril", 1))))
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    write_page(log, record, page)
    rows = read_rows(record)
    assert [(row["checkpoint"], row["code"]) for row in rows] == [("a", 0), ("b", 0), ("c", 1)]
    assert page.read_text() == f"before\n{BEGIN}{write_table(rows)}\n{END}\nafter\n"


def test_the_page_shows_what_is_on_record() -> None:
    (shown,) = [part.split(END)[0] for part in PAGE.read_text(encoding="utf-8").split(BEGIN)[1:]]
    assert shown.rstrip("\n") == write_table(read_rows(RECORD))


def test_each_way_is_undone_before_the_next(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", {})
    params = project.folder / "params.yaml"
    before = params.read_text()
    for way, changes in WAYS.items():
        project.lay_over(changes)
        assert (params.read_text() == before) == (way == "one")
        project.lay_over(BACK[way])
        assert params.read_text() == before, way

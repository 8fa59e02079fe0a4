"""The pool: which answers the student learns from, and what is said about each teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages import pool
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import MissingInput
from stages.responses.schemas import ANSWERS, VERDICTS
from stages.responses.style import compute_style, find_distinct, jaccard_similarity, make_shingles

Given = tuple[str, int, str, str, int | None]  # question, sample, text, finish reason, verdict

QWEN: list[Given] = [
    ("q2", 0, "28", "stop", 1),
    ("q2", 1, "27", "stop", 0),
    ("q1", 0, "5 and then", "length", 0),
    ("q1", 1, "6", "stop", None),
]
INTERN: list[Given] = [
    ("q1", 0, "so 6", "stop", 1),
    ("q1", 1, "6", "stop", 1),
    ("q2", 0, "", "stop", 0),
    ("q3", 0, "1", "length", 0),
]


def write(root: Path, teacher: str, rows: Sequence[Given]) -> None:
    answers = [
        {
            "question_id": question,
            "sample": sample,
            "response": text,
            "finish_reason": reason,
            "prompt_tokens": 5,
            "completion_tokens": len(text),
            "response_key": f"{question}{sample}",
            "token_ids": [1],
        }
        for question, sample, text, reason, _ in rows
    ]
    verdicts = [
        {"question_id": question, "sample": sample, "verdict": verdict, "explanation": "", "response_key": None}
        for question, sample, _, _, verdict in rows
    ]
    write_shards(root / "data" / "teacher" / teacher, answers, ANSWERS)
    write_shards(root / "data" / "verdict" / teacher, verdicts, VERDICTS)


@pytest.fixture
def run(root: Path, tmp_path: Path):
    """Runs the stage over both teachers' rows: its rows and its metrics."""
    write(tmp_path, "qwen2_5_vl", QWEN)
    write(tmp_path, "internvl3", INTERN)

    def go(**changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        params = validate_params(merge_params(read_yaml(root / "params.yaml"), {"pool": changes}))
        job = open_job("pool", None, tmp_path, params)
        pool.run(job)
        return read_shards(job.out).to_pylist(), read_json(job.reports / "metrics.json")

    return go


def texts(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, int, str, int | None]]]:
    return {
        row["question_id"]: [(a["teacher"], a["sample"], a["text"], a["verdict"]) for a in row["answers"]]
        for row in rows
    }


def test_whole_answers_of_all_teachers_sorted_with_their_verdicts(run) -> None:
    rows, _ = run()
    assert list(texts(rows).items()) == [
        ("q1", [("internvl3", 0, "so 6", 1), ("internvl3", 1, "6", 1), ("qwen2_5_vl", 1, "6", None)]),
        ("q2", [("internvl3", 0, "", 0), ("qwen2_5_vl", 0, "28", 1), ("qwen2_5_vl", 1, "27", 0)]),
    ]


def test_cut_answers_stay_when_they_are_asked_for(run) -> None:
    rows, _ = run(truncated="keep")
    assert sum(len(row["answers"]) for row in rows) == len(QWEN) + len(INTERN)
    assert [a["finish_reason"] for row in rows for a in row["answers"]].count("length") == 2


def test_a_cut_answer_without_text_is_dropped_even_then(run, tmp_path: Path) -> None:
    """It has no token to learn from."""
    write(tmp_path, "qwen2_5_vl", [*QWEN[:-1], ("q1", 1, "", "length", 0)])
    rows, metrics = run(truncated="keep")
    cut = [answer["text"] for row in rows for answer in row["answers"] if answer["finish_reason"] == "length"]
    assert cut == ["5 and then", "1"]
    assert metrics["qwen2_5_vl"]["dropped_truncated"] == 1


def test_teachers_are_chosen_here_and_their_order_does_not_count(run) -> None:
    rows, metrics = run(teachers=["internvl3"])
    assert {answer[0] for answers in texts(rows).values() for answer in answers} == {"internvl3"}
    assert "qwen2_5_vl" not in metrics
    assert run(teachers=["internvl3", "qwen2_5_vl"]) == run(teachers=["qwen2_5_vl", "internvl3"])


def test_statistics_are_about_all_answers_and_leave_failed_verdicts_out_of_accuracy(run) -> None:
    _, metrics = run()
    assert metrics["questions"] == 2
    assert metrics["qwen2_5_vl"] == {
        "answers": 4,
        "kept": 3,
        "dropped_truncated": 1,
        "dropped_wrong": 0,
        "dropped_near_duplicates": 0,
        "accuracy": pytest.approx(1 / 3),
        "mean_tokens": pytest.approx((2 + 2 + 10 + 1) / 4),
        "mean_tokens_right": 2,
        "mean_tokens_wrong": 6,
        "truncated_share": 0.25,
        "failed_verdicts": 1,
        "mean_words": 1.5,
        "mean_lines": 1,
        "distinct_words": 1,
        "lists_share": 0,
    }


def test_bytes_are_equal_whatever_order_the_rows_came_in(run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "data" / "pool" / "part-00000.parquet").read_bytes()
    write(tmp_path, "qwen2_5_vl", QWEN[::-1])
    run()
    assert (tmp_path / "data" / "pool" / "part-00000.parquet").read_bytes() == before


def test_a_missing_teacher_is_named_with_what_makes_it(run, tmp_path: Path) -> None:
    (tmp_path / "data" / "verdict" / "qwen2_5_vl").rename(tmp_path / "gone")
    with pytest.raises(MissingInput, match="dvc repro verdict@qwen2_5_vl"):
        run()
    assert run(teachers=["internvl3"])[1]["questions"] == 2


def test_verdicts_on_other_answers_are_an_error(run, tmp_path: Path) -> None:
    answers = (tmp_path / "data" / "teacher" / "qwen2_5_vl" / "part-00000.parquet").read_bytes()
    write(tmp_path, "qwen2_5_vl", QWEN[:3])
    (tmp_path / "data" / "teacher" / "qwen2_5_vl" / "part-00000.parquet").write_bytes(answers)
    with pytest.raises(ValueError, match="hold different answers"):
        run()


def test_a_pool_without_answers_is_an_error(run, tmp_path: Path) -> None:
    write(tmp_path, "internvl3", INTERN[3:])
    with pytest.raises(ValueError, match="no answer is left"):
        run(teachers=["internvl3"])


def test_wrong_answers_are_dropped_on_demand_and_failed_verdicts_stay(run) -> None:
    rows, metrics = run(wrong="drop", truncated="keep")
    assert list(texts(rows).items()) == [
        ("q1", [("internvl3", 0, "so 6", 1), ("internvl3", 1, "6", 1), ("qwen2_5_vl", 1, "6", None)]),
        ("q2", [("qwen2_5_vl", 0, "28", 1)]),
    ]
    assert (metrics["qwen2_5_vl"]["dropped_wrong"], metrics["internvl3"]["dropped_wrong"]) == (2, 2)


LONG = "3 and 8 make 11, and 5 more make 16, so the sum of all of these digits is 16"


def test_near_duplicates_of_one_teacher_to_one_question_are_dropped_on_demand(run, tmp_path: Path) -> None:
    alike = [LONG, LONG.upper() + "!", LONG.replace("5 more make 16", "5 more make 17"), LONG.replace("11,", "11;")]
    write(
        tmp_path,
        "internvl3",
        [("q1", sample, text, "stop", 1) for sample, text in enumerate(alike)] + [("q2", 0, LONG, "stop", 1)],
    )
    rows, metrics = run(near_duplicates="drop", teachers=["internvl3"])
    assert [answer[1] for answer in texts(rows)["q1"]] == [0, 2]  # another number is another answer
    assert [answer[1] for answer in texts(rows)["q2"]] == [0]
    assert metrics["internvl3"]["dropped_near_duplicates"] == 2
    rows, _ = run(near_duplicates="drop", teachers=["internvl3"], alike=0.6)
    assert [answer[1] for answer in texts(rows)["q1"]] == [0]
    assert len(texts(run(teachers=["internvl3"])[0])["q1"]) == 4


def test_likeness_is_the_share_of_common_runs_of_words() -> None:
    one, other = make_shingles("a b c d e"), make_shingles("A b c d f")
    assert jaccard_similarity(one, other) == 2 / 4
    assert jaccard_similarity(one, one) == 1
    assert jaccard_similarity(make_shingles("28"), make_shingles("27")) == 0
    assert jaccard_similarity(make_shingles(""), make_shingles("?!")) == 1
    assert find_distinct(["x y z", "28", "27", "x y z", "28"], 1.0) == [0, 1, 2]


def test_style_is_counted_in_words_lines_and_lists() -> None:
    found = compute_style(["so so so 16", "- one\n- two\n", ""])
    assert found == {"mean_words": 2.0, "mean_lines": 1.0, "distinct_words": 0.75, "lists_share": pytest.approx(1 / 3)}
    assert set(compute_style([])) == set(found)


def test_questions_with_fewer_answers_and_none_are_no_trouble(run, tmp_path: Path) -> None:
    """Answers that could not be had leave gaps: samples are missing, or a whole question is."""
    write(tmp_path, "qwen2_5_vl", [("q2", 1, "27", "stop", 0), ("q2", 5, "28", "stop", 1)])
    write(tmp_path, "internvl3", [("q1", 1, "6", "stop", 1)])
    rows, _ = run()
    assert texts(rows) == {
        "q1": [("internvl3", 1, "6", 1)],
        "q2": [("qwen2_5_vl", 1, "27", 0), ("qwen2_5_vl", 5, "28", 1)],
    }

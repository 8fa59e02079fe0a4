"""Stages teacher, rollout and verdict with real vLLM on tiny checkpoints: outs are projections of the store."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.jobs import open_job
from stages import pool, rollout, teacher, verdict
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.kept_questions import write_kept_questions
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import Job
from stages.job.rejects import TooManyRejects
from stages.judging.exam import ATTACKS, read_exam_rows
from stages.judging.rules import EMPTY
from stages.responses.schemas import ANSWERS
from stages.vlm.checkpoint import Checkpoint

FEW = {"sampling": {"max_tokens": 8}, "responses": 3}
SETTINGS = {
    "teachers": {"internvl3": FEW},
    "rollout": FEW,
    "discriminator": {"responses_per_side": 2},
    "verdict": {"max_tokens": 16, "max_failed_share": 1.0, "min_exam_accuracy": 0.0},
}


@pytest.fixture
def job_of(root: Path, tmp_path: Path, tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch):
    """Makes jobs in a project with five questions, a tiny teacher, a tiny student and a tiny judge."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    for family, place in (("internvl3", "model/internvl3"), ("qwen2_5_vl", "warm_start"), ("qwen2_5", "model/judge")):
        shutil.copytree(tiny(family).folder, tmp_path / "data" / place)
    rows = []
    for index in range(5):
        buffer = io.BytesIO()
        Image.new("RGB", (84, 84), (40 * index, 0, 0)).save(buffer, "PNG")
        message = {"role": "user", "content": f"<image>What is the sum of the digits {index}?"}
        rows.append(make_canonical_row(f"q{4 - index}", [buffer.getvalue()], [message], str(index), "test", "sum"))
    write_shards(tmp_path / "data" / "questions" / "imitation", rows, QUESTION_SCHEMA)
    write_kept_questions(tmp_path / "data/selection/kept", "imitation", [row["id"] for row in rows])

    def make(stage: str, item: str | None = None, overlay: Any = None) -> Job:
        values = merge_params(merge_params(read_yaml(root / "params.yaml"), SETTINGS), overlay or {})
        return open_job(stage, item, tmp_path, validate_params(values))

    return make


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("an engine was started")


@pytest.mark.slow
def test_a_teachers_answers_are_a_projection_of_the_store(job_of, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("teacher", "internvl3")
    teacher.run(job)
    rows = read_shards(job.out).to_pylist()
    assert [(row["question_id"], row["sample"]) for row in rows] == [
        (f"q{4 - i}", s) for i in range(5) for s in range(3)
    ]
    assert all(0 < row["completion_tokens"] <= 8 and len(row["token_ids"]) == row["completion_tokens"] for row in rows)
    metrics = read_json(job.reports / "metrics.json")
    assert (metrics["questions"], metrics["answers"]) == (5, 15)
    assert metrics["completion_tokens"] == sum(row["completion_tokens"] for row in rows)
    files = {file.name: file.read_bytes() for file in [*job.out.iterdir(), *job.reports.iterdir()]}
    monkeypatch.setattr("stages.engines.start.VllmEngine", refuse)
    shutil.rmtree(job.out)
    teacher.run(job_of("teacher", "internvl3"))
    assert {file.name: file.read_bytes() for file in [*job.out.iterdir(), *job.reports.iterdir()]} == files
    runtime = {"runtime": {"kv_cache_gib": 2}, "seed": 7}
    teacher.run(job_of("teacher", "internvl3", runtime))  # neither machine nor experiment changes what is asked
    with pytest.raises(AssertionError, match="an engine was started"):
        teacher.run(job_of("teacher", "internvl3", {"teachers": {"internvl3": {"responses": 4}}}))


@pytest.mark.slow
def test_questions_that_cannot_be_answered_are_named_and_the_others_are_answered(
    job_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is longer than the model, one has a picture that nobody can read; later stages get fewer answers."""
    folder = tmp_path / "data" / "questions" / "imitation"
    rows = read_shards(folder).to_pylist()
    rows[1]["messages"][0]["content"] = "<image>" + "What is the sum? " * 300
    rows[3] = make_canonical_row("broken", [b"no picture"], [rows[3]["messages"][0]], "1", "test", "sum")
    write_shards(folder, rows, QUESTION_SCHEMA)
    write_kept_questions(tmp_path / "data/selection/kept", "imitation", [row["id"] for row in rows])
    job = job_of("teacher", "internvl3", {"teachers": {"internvl3": {"max_reject_share": 0.5}}})
    teacher.run(job)
    answered = read_shards(job.out).to_pylist()
    assert [(row["question_id"], row["sample"]) for row in answered] == [
        (q, s) for q in ("q4", "q2", "q0") for s in range(3)
    ]
    rejects = [json.loads(line) for line in (job.reports / "rejects.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["sample"], row["answers"], row["kind"]) for row in rejects] == [
        ("q3", 0, 3, "refused"),
        ("broken", 0, 3, "refused"),
    ]
    assert "256" in rejects[0]["reason"]
    assert "image" in rejects[1]["reason"]
    assert read_json(job.reports / "metrics.json")["rejected_answers"] == 6
    judge = job_of("verdict", "internvl3")
    verdict.run(judge)
    assert read_shards(judge.out).num_rows == 9
    pool.run(job_of("pool", None, {"ril": {"group": 3}, "pool": {"teachers": ["internvl3"], "truncated": "keep"}}))
    before = [file.read_bytes() for file in [*sorted(job.out.iterdir()), job.reports / "rejects.jsonl"]]
    monkeypatch.setattr("stages.engines.start.VllmEngine", refuse)
    teacher.run(job_of("teacher", "internvl3", {"teachers": {"internvl3": {"max_reject_share": 0.4}}}))
    assert [file.read_bytes() for file in [*sorted(job.out.iterdir()), job.reports / "rejects.jsonl"]] == before
    with pytest.raises(
        TooManyRejects, match=r"teacher@internvl3: 6 of 15 answers are missing, .*max_reject_share = 0.01"
    ):
        teacher.run(job_of("teacher", "internvl3"))


@pytest.mark.slow
def test_a_deleted_store_gives_the_same_bytes_again(job_of, tmp_path: Path) -> None:
    job = job_of("rollout")
    rollout.run(job)
    before = [file.read_bytes() for file in sorted(job.out.iterdir())]
    shutil.rmtree(tmp_path / "store")
    rollout.run(job_of("rollout"))
    assert [file.read_bytes() for file in sorted(job.out.iterdir())] == before


@pytest.mark.slow
def test_a_judge_that_says_nothing_gives_failed_verdicts_and_too_many_stop_the_stage(job_of, tmp_path: Path) -> None:
    """The judge's weights are random: it writes no tag."""
    given = [("q0", 0, "4"), ("q0", 1, ""), ("q1", 0, "5"), ("q1", 1, "4")]
    rows = [
        {
            "question_id": question,
            "sample": sample,
            "response": text,
            "finish_reason": "stop",
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "response_key": "",
            "token_ids": [1],
        }
        for question, sample, text in given
    ]
    write_shards(tmp_path / "data" / "teacher" / "internvl3", rows, ANSWERS)
    job = job_of("verdict", "internvl3")
    verdict.run(job)
    found = read_shards(job.out).to_pylist()
    assert [(row["question_id"], row["sample"]) for row in found] == [
        (question, sample) for question, sample, _ in given
    ]
    assert [row["verdict"] for row in found] == [None, 0, None, None]
    assert found[1]["explanation"] == EMPTY
    assert [row["response_key"] is None for row in found] == [False, True, False, False]
    metrics = read_json(job.reports / "metrics.json")
    exam = metrics.pop("exam")
    assert metrics == {"by_rule": 1, "correct_share": 0.0, "failed": 3, "verdicts": 4}
    assert (exam["cases"], exam["balanced_accuracy"]) == (500, 0.0)
    ruled = [row for row in read_exam_rows(ATTACKS) if row["kind"] == "opener alone"]
    assert exam["attacks_held"] == len(ruled)  # a rule decides these; no verdict is not the twin's verdict
    assert exam["failed"] == 500 + 2 * (exam["attacks"] - len(ruled))
    verdict.run(job_of("verdict", "internvl3", {"verdict": {"exam": False}}))
    assert read_json(job.reports / "metrics.json")["exam"] is None
    with pytest.raises(RuntimeError, match="3 of 4 verdicts failed"):
        verdict.run(job_of("verdict", "internvl3", {"verdict": {"max_failed_share": 0.5}}))

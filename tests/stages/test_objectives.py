"""The stages discriminator and ril under every objective, with real vLLM on tiny checkpoints with random weights."""

import csv
import io
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages import discriminator, ril
from stages.corpora import SCHEMA, canonical_row
from stages.imitation.discriminator import WEIGHTS
from stages.job import Job, Progress, merged, read_yaml, validated
from stages.job.files import read_json, read_shards, write_shards
from stages.responses import ANSWERS
from stages.responses.rows import POOL
from stages.vlm import Checkpoint

SMALL = {
    "verdict": {"max_tokens": 16, "max_failed_share": 1.0},  # a judge of random weights says nothing
    "discriminator": {"steps": 3, "questions_per_step": 2, "responses_per_side": 2, "alarm_steps": 1},
    "ril": {
        "steps": 2,
        "questions_per_step": 2,
        "group": 2,
        "warmup_steps": 0,
        "sampling": {"max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "validation_every": 2,
    },
}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ril": (
        {
            "rollout_correction": "truncate_token",
            "kl": "full",
            "inner_updates": 2,
            "similarity": "ranked",
            "truncated": "as_judged",
        },
        {"sees": "question_and_image", "update": "after_scoring"},
    ),
    "gad": ({}, {}),
    "dr_grpo": ({}, {}),
    "sft": ({}, {}),
}


@pytest.fixture
def project(root: Path, tmp_path: Path, tiny: Callable[[str], Checkpoint]) -> Callable[[str, Mapping[str, Any]], Job]:
    """Makes jobs in a project with questions, a pool, rollouts, a student and a judge."""
    for family, place in (("qwen2_5_vl", "warm_start"), ("qwen2_5", "model/judge")):
        shutil.copytree(tiny(family).folder, tmp_path / "data" / place)
    questions, pool, rollout = [], [], []
    for index in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (84, 84), (40 * index, 0, 0)).save(buffer, "PNG")
        message = {"role": "user", "content": f"<image>What is the sum of the digits {index}?"}
        questions.append(canonical_row(f"q{index}", [buffer.getvalue()], [message], str(index), "test", "sum"))
        answers = [
            {"teacher": teacher, "sample": n, "text": f"3:{n},8:{n}. {teacher[0]}", "verdict": n % 2, "finish_reason": "stop"}
            for teacher in ("internvl3", "qwen2_5_vl")
            for n in range(4)
        ]
        pool.append({"question_id": f"q{index}", "answers": answers})
        rollout += [
            dict.fromkeys(ANSWERS.names) | {"question_id": f"q{index}", "sample": n, "response": f"{n}", "finish_reason": "stop"}
            for n in range(4)
        ]
    for split in ("imitation", "validation"):
        write_shards(tmp_path / "data" / "questions" / split, questions, SCHEMA)
    write_shards(tmp_path / "data" / "pool", pool, POOL)
    write_shards(tmp_path / "data" / "rollout", rollout, ANSWERS)

    def make(stage: str, overlay: Mapping[str, Any]) -> Job:
        values = merged(merged(read_yaml(root / "params.yaml"), SMALL), overlay)
        return Job(stage, None, tmp_path, validated(values), Progress())

    return make


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(RUNS))
def test_both_stages_run_under_every_objective(
    project: Callable[[str, Mapping[str, Any]], Job], objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, its = RUNS[objective]
    overlay = {"ril": {"objective": objective, **loop}, "discriminator": its}
    job = project("discriminator", overlay)
    discriminator.run(job)
    uses_one = objective not in ("dr_grpo", "sft")
    assert (job.out / WEIGHTS).is_file() == uses_one
    if uses_one:
        metrics = read_json(job.reports / "metrics.json")
        assert {"acc", "acc_student", "acc_internvl3", "acc_qwen2_5_vl", "calibration_error", "acc_length_only"} <= set(metrics)
    job = project("ril", overlay)
    ril.run(job)
    assert (job.out / "model" / "model.safetensors").is_file()
    with (job.reports / "history.csv").open() as handle:
        history = list(csv.DictReader(handle))
    assert len(history) == 2
    assert ("disc/acc" in history[0]) == uses_one
    samples = read_shards(job.out / "samples").to_pylist()
    if objective == "gad":  # nobody judges: every student answer stays, no teacher answer is trained on
        assert {row["source"] for row in samples} == {"student"}
        assert len(samples) == 8
        assert all(row["answer"] == 0 and row["similarity"] == -row["logit"] for row in samples)
    if objective == "dr_grpo":
        assert all(row["source"] == "student" and math.isnan(row["logit"]) for row in samples)
    if objective == "sft":  # nobody answers: cross entropy on references at full weight
        assert {(row["source"], row["advantage"]) for row in samples} == {("reference", 1.0)}
        assert len(samples) == 4
        assert {f"q{row['response']}" for row in samples} == {row["question_id"] for row in samples}
        assert float(history[0]["grad_norm"]) > 0
    if objective == "ril":
        assert {row["source"] for row in samples} >= {"internvl3", "qwen2_5_vl"}
        assert float(history[0]["ratio"]) == 1.0
        assert "ratio/last" in history[0]

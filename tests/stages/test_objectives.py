"""The stages discriminator and ril under every objective, with real vLLM on tiny checkpoints with random weights."""

import csv
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stages import discriminator, ril
from stages.adversary.discriminator_model import WEIGHTS
from stages.job.files import read_json, read_shards
from stages.job.hashes import hash_file
from stages.job.job import Job

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ril": (
        {
            "rollout_correction": "truncate_token",
            "sampling": {"temperature": 0.5},
            "kl": "full",
            "inner_updates": 2,
            "similarity": "ranked",
            "truncated": "as_judged",
            "keep": "both",
        },
        {"sees": "question_and_image", "update": "after_scoring"},
    ),
    "adversarial": ({}, {}),
    "dr_grpo": ({}, {}),
    "sft": ({}, {}),
    "imitation": ({"validation_samples": 1}, {}),
}


SOURCES = ("student", "internvl3", "qwen2_5_vl", "teacher")
BY_SOURCE = ("rewards/{}/similarity", "rewards/{}/answer", "rewards/{}/advantage", "disc/{}/logit", "disc/{}/acc")
BY_SOURCE += ("completions/{}/mean_length", "completions/{}/clipped_ratio", "judge/{}/failed")
OF_THE_UPDATE = ("kl/{}", "entropy/{}", "ratio/{}", "clip_ratio/{}")  # of sources that have a row in it
AS_A_WHOLE = {"disc/loss", "disc/acc", "disc/grad_norm", "frac_reward_zero_std", "frac_correct_negative_advantage"}
AS_A_WHOLE |= {"loss", "grad_norm", "ratio", "clip_ratio"}


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(RUNS))
def test_both_stages_run_under_every_objective(
    loop_project: Callable[[str, Mapping[str, Any]], Job], objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, its = RUNS[objective]
    overlay = {"ril": {"objective": objective, **loop}, "discriminator": its}
    job = loop_project("discriminator", overlay)
    discriminator.run(job)
    uses_one = objective not in ("dr_grpo", "sft", "imitation")
    assert (job.out / WEIGHTS).is_file() == uses_one
    if uses_one:
        metrics = read_json(job.reports / "metrics.json")
        assert {"acc", "acc_student", "acc_internvl3", "acc_qwen2_5_vl", "calibration_error", "acc_length_only"} <= set(
            metrics
        )
    job = loop_project("ril", overlay)
    ril.run(job)
    assert (job.out / "model" / "model.safetensors").is_file()
    with (job.reports / "history.csv").open() as handle:
        history = list(csv.DictReader(handle))
    assert len(history) == 2
    assert ("disc/acc" in history[0]) == uses_one
    samples = read_shards(job.out / "samples").to_pylist()
    if objective == "adversarial":  # nobody judges: every student answer stays, no teacher answer is trained on
        assert {row["source"] for row in samples} == {"student"}
        assert len(samples) == 8
        assert all(row["answer"] == 0 and row["similarity"] == -row["logit"] for row in samples)
    if objective == "dr_grpo":
        assert all(row["source"] == "student" and row["logit"] is None for row in samples)
    if objective == "sft":  # nobody answers: cross entropy on references at full weight
        assert {(row["source"], row["advantage"]) for row in samples} == {("reference", 1.0)}
        assert len(samples) == 4
        assert {f"q{row['response']}" for row in samples} == {row["question_id"] for row in samples}
        assert float(history[0]["grad_norm"]) > 0
    assert (job.out / "validation").is_dir() == (objective == "imitation")
    if objective == "imitation":  # nobody answers but the teachers, whose answers all have full weight
        assert {row["source"] for row in samples} == {"internvl3", "qwen2_5_vl"}
        assert {(row["answer"], row["advantage"]) for row in samples} == {(1, 1.0)}
        assert float(history[0]["kl/teacher"]) >= 0
    assert (job.out / "last" / "model.safetensors").is_file() == (objective == "ril")
    if objective == "ril":
        kept = read_json(job.reports / "metrics.json")["validation"][
            "kept_step"
        ]  # of equal scores the first: before any step
        same = [hash_file(job.out / name / "model.safetensors") for name in ("model", "last")]
        assert (same[0] == same[1]) == (kept == 2)
        assert {row["source"] for row in samples} >= {"internvl3", "qwen2_5_vl"}
        assert float(history[0]["ratio"]) == 1.0
        assert "ratio/last" in history[0]
        columns = {name.format(source) for name in BY_SOURCE for source in SOURCES} | AS_A_WHOLE
        in_update = {"teacher"} | {row["source"] for row in samples}
        columns |= {name.format(source) for name in OF_THE_UPDATE for source in in_update}
        assert columns <= set(history[0]), columns - set(history[0])

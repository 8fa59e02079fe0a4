"""A question that is longer than the model stops no stage: it is a line of rejects.jsonl, up to max_reject_share."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.jobs import open_job
from stages import discriminator, evaluate, model, ril, warm_start
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QUESTION_SCHEMA
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import Job
from stages.job.rejects import TooManyRejects
from stages.vlm.checkpoint import Checkpoint

Project = Callable[[str, Mapping[str, Any]], Job]
LONG = "sum of the digits " * 60  # more than the 256 tokens of the tiny student


def rejects(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.reports / "rejects.jsonl").read_text().splitlines()]


def lengthen(folder: Path, *ids: str, target: str | None = None) -> None:
    """Makes the text of these questions, or their targets, longer than the model."""
    rows = read_shards(folder).to_pylist()
    for row in rows:
        if target is not None:
            row["messages"] = [*row["messages"], {"role": "assistant", "content": target}]
        if row["id"] in ids:
            row["messages"][-1]["content"] += LONG
    write_shards(folder, rows, QUESTION_SCHEMA)


def test_warm_start_leaves_out_what_does_not_fit_with_its_target(
    loop_project: Project, tmp_path: Path, tiny: Callable[[str], Checkpoint]
) -> None:
    shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "data/model/student")
    split = tmp_path / "data/questions/warm_start"
    shutil.copytree(tmp_path / "data/questions/imitation", split)
    lengthen(split, "q1", target="28")
    block = {"steps": 3, "rows_per_step": 4, "warmup_steps": 0}
    job = loop_project("warm_start", {"warm_start": {**block, "max_reject_share": 0.2}})
    warm_start.run(job)
    (line,) = rejects(job)
    assert (line["question_id"], line["kind"]) == ("q1", "refused")
    assert "of the answer are more than context_tokens = 256" in line["reason"]
    assert read_json(job.reports / "metrics.json")["questions"] == 5
    with pytest.raises(TooManyRejects, match=r"warm_start: 1 of 6 questions exceed the context.*question q1"):
        warm_start.run(loop_project("warm_start", {"warm_start": {**block, "max_reject_share": 0.1}}))


@pytest.mark.slow
def test_a_photo_of_12_megapixels_is_learned_by_a_pinned_student(
    root: Path, loop_project: Project, tmp_path: Path, tiny: Callable[[str], Checkpoint]
) -> None:
    """Nobody has set a limit on images: stage `model` finds one, later stages and the trained model keep it."""
    source = {"build": None, "path": str(tiny("qwen2_5_vl").folder), "context_tokens": 120, "verify": False}
    values = merge_params(read_yaml(root / "params.yaml"), {"models": {"student": source}})
    pinning = open_job("model", "student", tmp_path, validate_params(values))
    model.run(pinning)
    limits = {"max_pixels": 60 * 784}  # half of 120 tokens; its processor's own limit is 64
    assert read_json(pinning.out / "ril.json")["image_limits"] == limits
    split = tmp_path / "data/questions/warm_start"
    shutil.copytree(tmp_path / "data/questions/imitation", split)
    lengthen(split, target="28")
    rows = read_shards(split).to_pylist()
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((4000, 3000)).convert("RGB").save(buffer, "JPEG")
    for row in rows:
        row["images"] = [{**row["images"][0], "bytes": buffer.getvalue()}]
    write_shards(split, rows, QUESTION_SCHEMA)
    job = loop_project("warm_start", {"warm_start": {"steps": 1, "rows_per_step": 2, "warmup_steps": 0}})
    warm_start.run(job)
    assert rejects(job) == []
    assert read_json(job.reports / "metrics.json")["questions"] == 6
    assert read_json(job.out / "ril.json")["image_limits"] == limits
    size = read_json(job.out / "processor_config.json")["image_processor"]["size"]
    assert size == {"longest_edge": 60 * 784, "shortest_edge": 784}
    contradiction = {"models": {"student": {"min_pixels": 784_000}}}
    values = validate_params(merge_params(values, contradiction))
    with pytest.raises(ValueError, match=r"models\.student: min_pixels is 784000, more than max_pixels \(47040\)"):
        model.run(open_job("model", "student", tmp_path, values))


@pytest.mark.slow
def test_ril_goes_on_without_what_does_not_fit(loop_project: Project, tmp_path: Path) -> None:
    """Neither sampled nor trained on; a validation question that does not fit is wrong."""
    discriminator.run(loop_project("discriminator", {}))
    lengthen(tmp_path / "data/questions/imitation", "q2")
    lengthen(tmp_path / "data/questions/validation", "q0", "q1")
    overlay = {"questions_per_step": 5, "samples_per_step": 5, "max_reject_share": 0.2}
    job = loop_project("ril", {"ril": overlay})
    ril.run(job)
    assert [(line["question_id"], line["answers"]) for line in rejects(job)] == [("q2", 2), ("q0", 1), ("q1", 1)]
    seen = {row["question_id"] for row in read_shards(job.out / "samples").to_pylist()}
    assert seen <= {"q0", "q1", "q3", "q4", "q5"}
    with pytest.raises(TooManyRejects, match=r"ril: 1 of 6 questions exceed the context"):
        ril.run(loop_project("ril", {"ril": {**overlay, "max_reject_share": 0.0}}))


@pytest.mark.slow
def test_evaluate_counts_what_does_not_fit_as_wrong(
    root: Path,
    loop_project: Project,
    tmp_path: Path,
    tiny: Callable[[str], Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    loop_project("ril", {})
    shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "data/model/student")
    split = tmp_path / "data/questions/test"
    shutil.copytree(tmp_path / "data/questions/imitation", split)
    lengthen(split, "q3")
    shutil.copytree(
        root / "stages/tiny/benchmarks",
        tmp_path / "stages/tiny/benchmarks",
        ignore=shutil.ignore_patterns("__pycache__"),
    )

    def job_of(share: float) -> Job:
        block = {"max_tokens": 8, "shuffled_images": True, "benchmarks": [], "max_reject_share": share}
        values = merge_params(read_yaml(root / "params.yaml"), {"evaluate": block})
        return open_job("evaluate", "base", tmp_path, validate_params(values))

    job = job_of(0.2)
    evaluate.run(job)
    rows = {row["question_id"]: row for row in read_shards(job.out).to_pylist()}
    assert len(rows) == 6
    assert (rows["q3"]["finish_reason"], rows["q3"]["correct"], rows["q3"]["correct_shuffled"]) == (
        "refused",
        False,
        False,
    )
    assert all(row["finish_reason"] in ("stop", "length") for name, row in rows.items() if name != "q3")
    assert [line["question_id"] for line in rejects(job)] == ["q3", "q3"], "once more with exchanged images"
    metrics = read_json(job.reports / "metrics.json")
    assert (metrics["questions"], metrics["refused"]) == (6, 1)
    with pytest.raises(TooManyRejects, match="2 of 12 answers are missing"):
        evaluate.run(job_of(0.1))

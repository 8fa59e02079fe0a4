"""The tiny profile with a student of family qwen3_vl: every stage from its build to the loop, as DVC runs them."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from stages.config.yaml import merge_params, read_yaml
from stages.job.files import read_json
from stages.vlm.checkpoint import open_checkpoint
from tests.checkpoints.walk import ROOT, Project

STAGES = (
    *("questions", "model@student", "model@judge", "warm_start", "selection", "teacher@itself", "verdict@itself"),
    *("pool", "rollout", "discriminator", "ril"),
)
# The student is its own teacher, and a judge that learned nothing is held to the tag: what counts is that all runs.
CHANGES: dict[str, Any] = {
    "models": {
        "student": {"family": "qwen3_vl", "build": {"layers": 3, "vision_layers": 3}},
        "judge": {"build": {"reading_steps": 2, "steps": 4, "warmup_steps": 1}},
        "qwen2_5_vl": None,
        "internvl3": None,
    },
    "selection": {"teacher": "student"},
    "teachers": {
        **dict.fromkeys(("qwen2_5_vl", "internvl3")),
        "itself": {"model": "student", "responses": 4, "sampling": {"max_tokens": 24}},
    },
    "pool": {"teachers": ["itself"], "truncated": "keep"},
    "verdict": {"constrained": True, "max_tokens": 64, "max_failed_share": 1.0, "exam": False},
    "warm_start": {"steps": 2},
    "ril": {"steps": 2, "sampling": {"max_tokens": 24}},
    "evaluations": dict.fromkeys(("qwen2_5_vl", "internvl3")),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_qwen3_vl_student_is_built_warm_started_and_trained_in_the_loop(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", merge_params(read_yaml(ROOT / "profiles/smoke.yaml"), CHANGES))
    for stage in STAGES:
        run = project.run_stage(stage, 300)
        print(f"{stage}: {run.seconds:.0f} s, {run.peak_gib:.1f} GiB")
        assert run.code == 0, f"{stage}: {run.said[-3000:]}"
    config = read_json(project.folder / "data/ril/model/config.json")
    assert config["vision_config"]["deepstack_visual_indexes"] == [0, 1, 2]
    assert open_checkpoint(project.folder / "data/ril/model").family == "qwen3_vl"
    for stage, columns in (("warm_start", ["loss"]), ("discriminator", ["loss"]), ("ril", ["loss", "grad_norm"])):
        with (project.folder / f"reports/{stage}/history.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(math.isfinite(float(row[column])) for row in rows for column in columns)

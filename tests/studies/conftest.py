"""A Git project with a study of its own, so small that it runs in CI: one teacher, models of one step."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies.records import StudyRecord

ROOT = Path(__file__).resolve().parents[2]
BUILD = {
    "hidden_size": 32, "heads": 1, "layers": 1, "steps": 1, "vision_steps": 0, "reading_steps": 0, "rows_per_step": 2,
    "warmup_steps": 0, "practice_groups": 0, "tokens_per_pack": 512,
}  # fmt: skip
SAMPLING = {"max_tokens": 8}
SMALL: dict[str, Any] = {
    "models": {
        "student": {"build": BUILD},
        "internvl3": {"build": BUILD},
        "judge": {"build": BUILD},
        "qwen2_5_vl": None,
    },
    "selection": {"teacher": "internvl3"},
    "teachers": {"internvl3": {"responses": 2, "sampling": SAMPLING}, "qwen2_5_vl": None},
    "pool": {"teachers": ["internvl3"], "truncated": "keep"},
    "questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}},
    "warm_start": {"steps": 1, "rows_per_step": 2},
    "verdict": {"max_failed_share": 1.0, "exam": False, "max_tokens": 8},
    "rollout": {"responses": 2, "sampling": SAMPLING},
    "discriminator": {"steps": 1, "questions_per_step": 2, "responses_per_side": 1},
    "ril": {
        "steps": 2,
        "questions_per_step": 2,
        "group": 2,
        "warmup_steps": 0,
        "sampling": SAMPLING,
        "validation_every": 2,
    },
    "evaluate": {"max_tokens": 8, "shuffled_images": False, "benchmarks": []},
    "evaluations": {"qwen2_5_vl": None, "internvl3": None},
}
STUDY: dict[str, Any] = {
    "title": "A small study",
    "about": "Whether everything works together.",
    "seeds": [{"world": 3, "seed": 4}],
    "arms": {
        "warm_start": {"title": "Warm start", "evaluation": "warm_start"},
        "gad": {"title": "GAD", "params": {"ril": {"objective": "adversarial"}}},
    },
    "order": [["warm_start"], ["gad"]],
    "differences": [["gad", "warm_start"]],
}


@pytest.fixture
def make_study(make_project: Callable[..., Path]) -> Callable[..., Path]:
    """A project committed to Git, as experiments need it, with the study `small` in studies/."""

    def make(name: str = "project", **changes: Any) -> Path:
        project = make_project(SMALL, name)
        shutil.copy(ROOT / ".gitignore", project / ".gitignore")
        shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
        (project / "studies" / "small.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "project"]):
            subprocess.run(["git", *words], cwd=project, check=True, timeout=60)
        return project

    return make


@pytest.fixture(scope="session")
def small_study() -> dict[str, Any]:
    """What the study `small` says."""
    return STUDY


@pytest.fixture(scope="session")
def record() -> Callable[..., StudyRecord]:
    """Makes a record as a run would leave it, of an arm that is right on the first questions."""
    return _record


def _record(arm: str, world: int, accuracy: float, seed: int = 1, questions: int = 100, **changes: Any) -> StudyRecord:
    right = round(accuracy * questions)
    values: dict[str, Any] = {
        "study": "small",
        "purpose": "compared",
        "arm": arm,
        "title": arm.upper(),
        "world": world,
        "seed": seed,
        "swept": {},
        "key": f"key of {arm} {world} {seed}",
        "params_sha256": "ab" * 32,
        "overrides": [f"seed={seed}"],
        "experiment": f"small-{arm}",
        "revision": "12" * 20,
        "commit": "34" * 20,
        "committed": True,
        "code": {"ril": "56" * 8},
        "lock_sha256": "cd" * 32,
        "seconds": {"ril": 60.0},
        "budget": {"steps": 2},
        "scores": {
            "accuracy": right / questions,
            "questions": questions,
            "by_kind": {"sum": accuracy},
            "mean_tokens": 9.0,
        },
        "right": "1" * right + "0" * (questions - right),
        "questions_sha256": f"world {world}",
        "styles": {"internvl3": 0.5, "any": 0.75},
    }
    return StudyRecord(**{**values, **changes})

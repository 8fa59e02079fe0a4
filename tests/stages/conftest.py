"""Tiny checkpoints with random weights, of every family, as stage `model` writes them, and a project for the loop."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from PIL import Image

from flows.jobs import open_job
from stages.config.build import Build
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import write_shards
from stages.job.job import Job
from stages.responses.schemas import ANSWERS, POOL
from stages.tiny.builds.shapes import build_tiny
from stages.training.ranks import join_alone
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card

TEXTS = ["The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.", "What is the sum of the digits in the image?"]


@pytest.fixture(scope="session")
def process_group() -> Any:
    """One group for all tests of this process: vLLM would make its own."""
    join_alone()
    return torch.distributed.group.WORLD


@pytest.fixture(autouse=True)
def lasting_group(process_group: Any) -> Iterator[None]:
    """No test may end the group, as vLLM's own shutdown does: DeepSpeed has kept it, and later tests would fail."""
    yield
    assert torch.distributed.group.WORLD is process_group


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """`tiny("internvl3")` is a checkpoint of that family; its head is scaled up, so that it has opinions."""
    made: dict[str, Path] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            context = 512 if family == "qwen2_5" else 256  # the judge reads a long prompt
            build = Build(
                steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
            )
            _, network = build_tiny(family, build, TEXTS, context, 1, folder)
            network.head.weight.data.mul_(40)
            network.model.save_pretrained(folder)
            write_card(folder, family, "fp32", context)
            made[family] = folder
        return open_checkpoint(made[family])

    return make


LOOP: dict[str, Any] = {
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


@pytest.fixture(scope="session")
def loop_params() -> Mapping[str, Any]:
    """What `loop_project` lays over params.yaml."""
    return LOOP


@pytest.fixture
def loop_project(
    root: Path, tmp_path: Path, tiny: Callable[[str], Checkpoint]
) -> Callable[[str, Mapping[str, Any]], Job]:
    """Makes jobs in a project with questions, a pool, rollouts, a student and a judge."""
    for family, place in (("qwen2_5_vl", "warm_start"), ("qwen2_5", "model/judge")):
        shutil.copytree(tiny(family).folder, tmp_path / "data" / place)
    questions, pool, rollout = [], [], []
    for index in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (84, 84), (40 * index, 0, 0)).save(buffer, "PNG")
        message = {"role": "user", "content": f"<image>What is the sum of the digits {index}?"}
        questions.append(make_canonical_row(f"q{index}", [buffer.getvalue()], [message], str(index), "test", "sum"))
        answers = [
            {
                "teacher": teacher,
                "sample": n,
                "text": f"3:{n},8:{n}. {teacher[0]}",
                "verdict": n % 2,
                "finish_reason": "stop",
            }
            for teacher in ("internvl3", "qwen2_5_vl")
            for n in range(4)
        ]
        pool.append({"question_id": f"q{index}", "answers": answers})
        rollout += [
            dict.fromkeys(ANSWERS.names)
            | {"question_id": f"q{index}", "sample": n, "response": f"{n}", "finish_reason": "stop"}
            for n in range(4)
        ]
    for split in ("imitation", "validation"):
        write_shards(tmp_path / "data" / "questions" / split, questions, QUESTION_SCHEMA)
    write_shards(tmp_path / "data" / "pool", pool, POOL)
    write_shards(tmp_path / "data" / "rollout", rollout, ANSWERS)

    def make(stage: str, overlay: Mapping[str, Any]) -> Job:
        values = merge_params(merge_params(read_yaml(root / "params.yaml"), LOOP), overlay)
        return open_job(stage, None, tmp_path, validate_params(values))

    return make

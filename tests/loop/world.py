"""A small project for whole stages: checkpoints with random weights, questions, teacher answers, a discriminator."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flows.jobs import open_job
from stages import pool
from stages.config.build import Build
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import write_shards
from stages.job.job import Job
from stages.responses.schemas import ANSWERS, VERDICTS
from stages.tiny.builds.shapes import build_tiny
from stages.vlm.checkpoint import write_card
from tests.loop.plain_models import SYSTEM, TURN, Critic, Task, Vlm

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("qwen2_5_vl", "internvl3")
TEACHERS = ("internvl3", "qwen2_5_vl")
SHAPE = Build(steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1)
PROSE = [
    *[SYSTEM, TURN] * 4,
    "What is the sum of the digits? Which bar is the largest one? You are a helpful assistant.",
]
ENDPOINT = {"provider": "somebody", "name": "judge-1"}
MAX_TOKENS = 24
LORA = {"rank": 4, "alpha": 6.0}
DRAWN = 5  # answers of each teacher to a question
OVERLAY: dict[str, Any] = {
    "models": {"judge": {"family": "remote", "build": None, "endpoint": ENDPOINT}},
    "runtime": {"engines": {"judge": {"kind": "openai", "base_url": "http://127.0.0.1:9"}}, "checkpoint_minutes": 999},
    "verdict": {"max_failed_share": 1.0},
    "pool": {"max_same_share": 1.0},
    "ril": {
        "steps": 3,
        "questions_per_step": 2,
        "group": 4,
        "learning_rate": 1e-5,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "discriminator_learning_rate": 2e-5,
        "sampling": {"max_tokens": MAX_TOKENS, "temperature": 0.8, "top_p": 1.0, "top_k": 0},
        "validation_every": 1,
        "samples_per_step": 2,
        "tokens_per_pack": 256,
        "keep": "both",
    },
}


def draw_picture(number: int) -> bytes:
    """A PNG of its own size and pattern."""
    buffer = io.BytesIO()
    size = (56 + 28 * (number % 3), 56 + 28 * (number // 3 % 2))
    Image.linear_gradient("L").resize(size).rotate(90 * number).point(lambda v: (v * (number + 1)) % 256).convert(
        "RGB"
    ).save(buffer, "PNG")
    return buffer.getvalue()


def make_tasks(prefix: str, count: int, first: int) -> list[Task]:
    """Questions with one, two or no image and references of their own."""
    return [
        Task(
            f"{prefix}{number}",
            f"Which number is {prefix} {number}?",
            tuple(draw_picture(10 * first + number + place) for place in range((number + 1) % 3)),
            str(first * 100 + 7 * number),
            None if number == 2 else f"It is {number}, so {first * 100 + 7 * number}" + " and more" * number,
        )
        for number in range(count)
    ]


LEARNING = make_tasks("q", 4, 3)
VALIDATION = make_tasks("v", 4, 5)
WARMING = make_tasks("w", 5, 7)


def say_as_teacher(teacher: str, task: Task, sample: int) -> str:
    """Answer `sample` of a teacher; no two are the same."""
    opening = "first: " if teacher == TEACHERS[0] else "so "
    return f"{opening}{task.id} {sample}{' then' * sample} {int(task.answer) + sample}"


def rate_teacher(teacher: str, task: Task, sample: int) -> int | None:
    """The stored verdict on that answer: right, wrong, or (one of ten) failed."""
    return (1, 0, 1, None, 0, 1, 1, 0, 1, 0)[(sample + len(teacher) + int(task.answer)) % 10]


def is_cut(task: Task, sample: int) -> bool:
    """Whether that answer of both teachers ended at their limit."""
    return (task.id, sample) == ("q1", 4)


def make_rollout_text(task: Task, sample: int) -> str:
    """Answer `sample` of the warm-started student; sample 3 is cut."""
    return f"{sample} {task.id}" + " um" * sample


def build_checkpoint(family: str, folder: Path, seed: int) -> Path:
    """A tiny model of the family with random weights."""
    _, network = build_tiny(family, SHAPE, PROSE, 256, seed, folder)
    network.model.save_pretrained(folder)
    write_card(folder, family, "fp32", 256)
    return folder


def write_questions(folder: Path, split: str, tasks: Sequence[Task]) -> None:
    """Writes a split; the rows stand in another order than the ids."""
    rows = []
    for task in reversed(tasks):
        turns = [{"role": "user", "content": "<image>" * len(task.images) + task.text}]
        turns += [{"role": "assistant", "content": task.target}] if task.target else []
        rows.append(make_canonical_row(task.id, list(task.images), turns, task.answer, "test", "sum"))
    write_shards(folder / "data" / "questions" / split, rows, QUESTION_SCHEMA)


def write_teachers(folder: Path) -> None:
    """Writes the answers of both teachers to all questions, and their verdicts."""
    for teacher in TEACHERS:
        answers, verdicts = [], []
        for task in LEARNING:
            for sample in range(DRAWN):
                key = {"question_id": task.id, "sample": sample}
                finish = "length" if is_cut(task, sample) else "stop"
                said = {"response": say_as_teacher(teacher, task, sample), "finish_reason": finish}
                answers.append({**dict.fromkeys(ANSWERS.names, 3), "token_ids": [], "response_key": "", **key, **said})
                verdicts.append(
                    {**dict.fromkeys(VERDICTS.names), **key, "verdict": rate_teacher(teacher, task, sample)}
                )
        write_shards(folder / "data" / "teacher" / teacher, answers, ANSWERS)
        write_shards(folder / "data" / "verdict" / teacher, list(reversed(verdicts)), VERDICTS)


def write_rollouts(folder: Path) -> None:
    """Writes the warm-started student's answers to all questions."""
    rows = [
        {
            **dict.fromkeys(ANSWERS.names),
            "question_id": task.id,
            "sample": sample,
            "response": make_rollout_text(task, sample),
            "finish_reason": "length" if sample == 3 else "stop",
        }
        for task in LEARNING
        for sample in range(4)
    ]
    write_shards(folder / "data" / "rollout", rows, ANSWERS)


def write_discriminator(student: Path, folder: Path) -> None:
    """Writes a D whose weights are not the student's."""
    draw = torch.Generator().manual_seed(3)
    weights = {
        f"text.{name}": value + 0.02 * torch.randn(value.shape, generator=draw)
        for name, value in Vlm(student).net.model.language_model.state_dict().items()
    }
    write_critic(student, folder, weights, draw)


def write_adapter(student: Path, folder: Path) -> None:
    """Writes a D that is the student with an adapter in place of the one in `folder`."""
    draw = torch.Generator().manual_seed(3)
    weights = {}
    for name, layer in Vlm(student).net.model.language_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weights[f"{name}.lora_A.weight"] = 0.3 * torch.randn(LORA["rank"], layer.in_features, generator=draw)
            weights[f"{name}.lora_B.weight"] = 0.1 * torch.randn(layer.out_features, LORA["rank"], generator=draw)
    write_critic(student, folder, weights, draw, LORA["alpha"] / LORA["rank"])


@torch.no_grad()
def write_critic(
    student: Path, folder: Path, weights: dict[str, Tensor], draw: torch.Generator, adapter: float | None = None
) -> None:
    """Writes a D with a random head, whose logits are spread around 0."""
    weights["score.weight"] = torch.randn(1, SHAPE.hidden_size, generator=draw)
    weights["score.bias"] = torch.zeros(1)
    texts = [say_as_teacher(TEACHERS[number % 2], task, number) for task in LEARNING for number in range(DRAWN)]
    texts += [f"{7 * number} {number}" for number in range(len(texts))]
    logits = Critic(student, weights, adapter=adapter).rate(texts, ())
    weights["score.weight"] /= logits.std()
    weights["score.bias"] -= logits.median() / logits.std()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "discriminator.safetensors")


def build_world(family: str, folder: Path) -> Path:
    """Writes what the stages read, with `pool.run`'s own output, and returns the project's folder."""
    student = build_checkpoint(family, folder / "data" / "warm_start", 1)
    build_checkpoint(family, folder / "data" / "model" / "student", 2)
    (folder / "data" / "model" / "judge").mkdir()
    write_card(folder / "data" / "model" / "judge", "remote", "bf16", 4096, {"endpoint": ENDPOINT})
    write_questions(folder, "imitation", [*LEARNING, *make_tasks("unused", 1, 9)])
    write_questions(folder, "validation", VALIDATION)
    write_questions(folder, "warm_start", WARMING)
    write_teachers(folder)
    write_rollouts(folder)
    pool.run(make_job("pool", folder, {}))
    write_discriminator(student, folder / "data" / "discriminator")
    return folder


def write_scorers(folder: Path, family: str) -> None:
    """Writes the models of both teachers, of the student's family, so that they have its tokenizer."""
    for number, name in enumerate(TEACHERS):
        build_checkpoint(family, folder / "data" / "model" / name, 5 + number)


def write_function(folder: Path, code: str) -> None:
    """Writes a user's reward function."""
    (folder / "rewards").mkdir()
    (folder / "rewards" / "unit.py").write_text(code)


def make_job(stage: str, folder: Path, overlay: Mapping[str, Any]) -> Job:
    """The job of a stage in that project, which keeps its training state in the project's folder."""
    values = merge_params(merge_params(read_yaml(ROOT / "params.yaml"), OVERLAY), overlay)
    job = open_job(stage, None, folder, validate_params(values))
    state = folder / "state" / stage
    state.mkdir(parents=True, exist_ok=True)
    return replace(job, run_folder=state)

"""A project in which every training stage can run: random tiny models and written-out answers, no engine needed to make
it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages import questions
from stages.adversary.discriminator_model import DiscriminatorModel
from stages.config.params import load_params
from stages.corpora.rows import read_questions
from stages.job.files import write_shards
from stages.responses.schemas import ANSWERS, POOL
from stages.tiny.world.kinds import answer_in_style, ask_question
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader

FEW = {"max_tokens": 8}
SMALL: dict[str, Any] = {
    "questions": {"splits": {"warm_start": 12, "imitation": 6, "validation": 2, "test": 2}},
    "warm_start": {"steps": 12, "rows_per_step": 4},
    "discriminator": {"steps": 12, "questions_per_step": 3, "responses_per_side": 2},
    "rollout": {"responses": 3},
    "ril": {
        "steps": 8,
        "questions_per_step": 2,
        "group": 2,
        "warmup_steps": 1,
        "sampling": FEW,
        "validation_every": 3,
        "keep": "both",
    },
    "verdict": {"max_tokens": 8, "max_failed_share": 1.0},
    "runtime": {"checkpoint_minutes": 0.0},
}


@pytest.fixture
def training_project(make_project: Callable[..., Path], tiny: Callable[[str], Checkpoint]) -> Path:
    """A folder with the inputs of stages warm_start, discriminator and ril."""
    folder = make_project(SMALL)
    params = load_params(folder / "params.yaml")
    for family, place in (("qwen2_5_vl", "model/student"), ("qwen2_5_vl", "warm_start"), ("qwen2_5", "model/judge")):
        shutil.copytree(tiny(family).folder, folder / "data" / place)
    questions.run(open_job("questions", None, folder, params))
    rollouts, pool = [], []
    for question in read_questions(folder / "data" / "questions", "imitation"):
        answers = []
        for sample in range(3):
            text = f"the number is {sample}"
            rollouts.append(_answer(question.id, sample, text))
            exercise = ask_question(question.kind, list(range(1, 7)), _First())
            spelled = answer_in_style(exercise, "steps" if sample % 2 else "arrows")
            teacher = "qwen2_5_vl" if sample % 2 else "internvl3"
            answers.append(
                {"teacher": teacher, "sample": sample, "text": spelled, "verdict": sample % 2, "finish_reason": "stop"}
            )
        pool.append({"question_id": question.id, "answers": answers})
    write_shards(folder / "data" / "rollout", rollouts, ANSWERS)
    write_shards(folder / "data" / "pool", pool, POOL)
    checkpoint = tiny("qwen2_5_vl")
    (folder / "data" / "discriminator").mkdir()
    DiscriminatorModel(load_network(checkpoint, load_reader(checkpoint)), seed=1).save(
        folder / "data" / "discriminator"
    )
    return folder


class _First:
    """Picks the first of everything."""

    def choice(self, items: Any) -> Any:
        return items[0]


def _answer(question: str, sample: int, text: str) -> dict[str, Any]:
    numbers = {"prompt_tokens": 9, "completion_tokens": 4, "token_ids": [5, 6, 7, 8]}
    return {
        "question_id": question,
        "sample": sample,
        "response": text,
        "finish_reason": "stop",
        "response_key": f"{question} {sample}",
        **numbers,
    }

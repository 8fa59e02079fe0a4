"""`discriminator.run` against a plain D: texts of each step, labels, rates, losses, weights, held-out accuracy."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages import discriminator
from stages.job.files import read_json
from tests.loop.checks import compare_critics, find_negatives
from tests.loop.plain import Written, teach_critic
from tests.loop.plain_models import Critic, Optimizer, Task, Vlm
from tests.loop.plain_rewards import Row
from tests.loop.recording import read_table, record_training
from tests.loop.settings import DISCRIMINATOR, DISCRIMINATOR_RATES, SCALE
from tests.loop.world import DRAWN, LEARNING, LORA, TEACHERS, is_cut, make_job, make_rollout_text, say_as_teacher

SIDE = DISCRIMINATOR["responses_per_side"]  # texts of each side of a question
TASKS = {task.id: task for task in LEARNING}


def list_texts(cut: bool) -> dict[str, Written]:
    """Every text that D may learn from: answers of the student and of both teachers; the pool has no `cut` ones."""
    found = {}
    for task in LEARNING:
        for sample in range(4 if cut else 3):
            text = make_rollout_text(task, sample)
            found[text] = (Row("student", text, (), "stop", None), task)
        for teacher in TEACHERS:
            for sample in range(DRAWN):
                if not is_cut(task, sample):
                    text = say_as_teacher(teacher, task, sample)
                    found[text] = (Row(teacher, text, (), "stop", None), task)
    return found


@pytest.mark.parametrize(
    ("family", "objective", "sees", "adapter"),
    [
        ("qwen2_5_vl", "ril", "response", None),
        ("internvl3", "adversarial", "response", None),
        ("internvl3", "ril", "question_and_image", None),
        ("qwen2_5_vl", "ril", "response", SCALE),
        ("internvl3", "ril", "question_and_image", SCALE),
    ],
)
def test_pre_training_is_that_of_a_plain_discriminator(
    family: str, objective: str, sees: str, adapter: float | None, make_world: Callable[[str], Path]
) -> None:
    folder = make_world(family)
    block = {**DISCRIMINATOR, "sees": sees, "lora": None if adapter is None else LORA}
    job = make_job("discriminator", folder, {"discriminator": block, "ril": {"objective": objective}})
    steps = record_training(discriminator.run, job)
    pairs = objective == "adversarial"
    texts = list_texts(cut=pairs)
    drawn = [[texts[text] for _, text in step.texts if text in texts] for step in steps]
    held_out = check_draws(drawn)
    made = [find_negatives(step.texts, own, 0 if pairs else 2) for step, own in zip(steps, drawn, strict=True)]
    written = [[*own, *negatives] for own, negatives in zip(drawn, made, strict=True)]
    assert [step.rate for step in steps] == pytest.approx(DISCRIMINATOR_RATES)

    start = steps[0].start
    student = Vlm(folder / "data" / "warm_start").net.model.language_model.state_dict()
    if adapter is None:
        assert all(torch.equal(start[f"text.{name}"], value) for name, value in student.items()), "D starts as it"
    else:
        assert len(start) == 2 + 2 * 14
        assert not any(value.any() for name, value in start.items() if "lora_B" in name), "D starts as the student"
    assert not start["score.bias"].any()
    assert 0.01 < float(start["score.weight"].std()) < 0.03
    critic = Critic(folder / "data" / "warm_start", start, sees.replace("_", " "), adapter)
    losses = teach_critic(critic, Optimizer(critic), written, DISCRIMINATOR_RATES, pairs)
    compare_critics(load_file(job.out / "discriminator.safetensors"), critic.copy_trained(), start, pairs)
    history = read_table(job.reports / "history.csv")
    assert [row["loss"] for row in history] == pytest.approx([loss for loss, _ in losses], rel=1e-5)
    rest = [one for one in texts.values() if one[1].id == held_out]
    check_held_out(critic, rest, read_json(job.reports / "metrics.json"))


def check_draws(steps: list[list[Written]]) -> str:
    """Both sides of each question, equally many, teachers balanced; returns the question that is held out."""
    seen = [task.id for step in steps for task in order_tasks(step)]
    assert [len(order_tasks(step)) for step in steps] == [2, 2, 2]
    assert len(set(seen[:3])) == 3, "the first epoch has every training question once"
    (held_out,) = TASKS.keys() - set(seen)
    for step in steps:
        for task in order_tasks(step):
            rows = [row for row, other in step if other.id == task.id]
            assert len({row.text for row in rows}) == 2 * SIDE, "without replacement"
            assert Counter(row.source for row in rows) == {"student": SIDE, **dict.fromkeys(TEACHERS, SIDE // 2)}
    visits = [
        (task.id, frozenset(row.text for row, other in step if other.id == task.id))
        for step in steps
        for task in order_tasks(step)
    ]
    assert len(set(visits)) == len(visits), "a fresh draw at every visit"
    return held_out


def order_tasks(step: list[Written]) -> list[Task]:
    """The questions of a step, in order."""
    return list({task.id: task for _, task in step}.values())


@torch.no_grad()
def check_held_out(critic: Critic, written: list[Written], metrics: dict[str, Any]) -> None:
    """Accuracy on all texts of the held-out question, both sides weighing the same."""
    logits = critic.rate([row.text for row, _ in written], [task for _, task in written]).tolist()
    ours = [z for z, (row, _) in zip(logits, written, strict=True) if row.ours]
    theirs = {name: [z for z, (row, _) in zip(logits, written, strict=True) if row.source == name] for name in TEACHERS}
    every = [z for found in theirs.values() for z in found]
    assert min(map(abs, logits)) > 1e-5
    assert metrics["acc_student"] == sum(z > 0 for z in ours) / len(ours)
    for name, found in theirs.items():
        assert metrics[f"acc_{name}"] == sum(z < 0 for z in found) / len(found)
    assert metrics["acc"] == (metrics["acc_student"] + sum(z < 0 for z in every) / len(every)) / 2
    assert metrics["logit_gap"] == pytest.approx(sum(ours) / len(ours) - sum(every) / len(every), abs=1e-5)

"""The adversary in a step: the order of learning and scoring, pauses, pairs, what it sees."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from stages.adversary.adversary import Adversary, AdversarySettings
from stages.adversary.diagnostics import discriminator_metrics
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text, score_texts
from stages.config.runtime import Runtime
from stages.groups.response import STUDENT
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.stages.rollout_fixtures import answers, loop, picture


@pytest.mark.parametrize("sees", ["response", "question", "question_and_image"])
@pytest.mark.parametrize("order", ["before_scoring", "after_scoring", "frozen"])
def test_the_order_of_learning_and_scoring(tiny: Callable[[str], Checkpoint], order: Any, sees: Any) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0, sees)
    collator = DiscriminatorCollator(reader, 4096, sees)
    rows = [row for _ in range(2) for row in answers(reader)]
    message = [{"role": "user", "content": "<image>What is the sum?"}]
    texts = [Text(row.text, str(number // 4), message, (picture(),)) for number, row in enumerate(rows)]
    before = score_texts(discriminator, collator, texts)
    trainer = Trainer(discriminator, loop(), Runtime())
    settings = AdversarySettings(update=order, learning_rate=1e-2)
    scored, seen = Adversary(discriminator, trainer, collator, settings).learn_and_score(rows, texts)
    after = score_texts(discriminator, collator, texts)
    assert scored == pytest.approx(after if order == "before_scoring" else before)
    assert (after == before) == (order == "frozen")
    assert {"disc/acc", "disc/acc_student", "disc/acc_teacher", "disc/logit_gap", "disc/entropy"} <= set(seen)
    assert 0 <= seen["disc/acc"] <= 1


def test_what_is_told_apart_is_told_by_teacher() -> None:
    """Two texts of the student, one of each teacher: accuracies, gaps and cross entropies by hand."""
    seen = discriminator_metrics(torch.tensor([2.0, -1.0, -3.0, 0.5]), [STUDENT, STUDENT, "a", "b"])
    assert seen["disc/acc"] == 0.5
    assert (seen["disc/acc_student"], seen["disc/acc_teacher"], seen["disc/acc_a"], seen["disc/acc_b"]) == (
        0.5,
        0.5,
        1.0,
        0.0,
    )
    assert (seen["disc/logit_gap"], seen["disc/logit_gap_a"], seen["disc/logit_gap_b"]) == (1.75, 3.5, 0.0)
    assert seen["disc/loss_a"] == pytest.approx(math.log(1 + math.exp(-3)))
    assert seen["disc/loss_b"] == pytest.approx(math.log(1 + math.exp(0.5)))
    assert 0 < seen["disc/entropy"] < math.log(2)
    assert discriminator_metrics(torch.tensor([2.0]), [STUDENT])["disc/acc"] is None


def test_it_pauses_where_it_is_too_good_and_learns_from_pairs(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0)
    collator = DiscriminatorCollator(reader, 4096, together=True)
    rows = answers(reader)
    texts = [Text(row.text, "q") for row in rows]
    trainer = Trainer(discriminator, loop(learning_rate=1e-3), Runtime())
    pairs = AdversarySettings("bradley_terry", learning_rate=1e-3)
    adversary = Adversary(discriminator, trainer, collator, pairs)
    losses = [adversary.learn_and_score(rows, texts)[1]["disc/loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    learned = score_texts(discriminator, collator, texts)
    assert min(learned[:2]) > max(learned[2:]), "high for the student, low for the teacher (trap T36)"
    pausing = replace(adversary, settings=replace(pairs, pause_above=0.6))
    _, seen = pausing.learn_and_score(rows, texts)
    assert seen["disc/acc"] > 0.6
    assert score_texts(discriminator, collator, texts) == learned


def test_a_discriminator_that_sees_images_tells_them_apart(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    message = [{"role": "user", "content": "<image>What is the sum?"}]
    other = io.BytesIO()
    Image.new("RGB", (84, 84), (255, 0, 0)).save(other, "PNG")
    shown = [Text("28", "a", message, (picture(),)), Text("28", "b", message, (other.getvalue(),))]
    for sees, differ in (("response", False), ("question", False), ("question_and_image", True)):
        discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0, sees)  # type: ignore[arg-type]
        first, second = score_texts(discriminator, DiscriminatorCollator(reader, 4096, sees), shown)  # type: ignore[arg-type]
        assert (abs(first - second) > 1e-6) == differ, sees


def test_a_step_with_one_side_only_or_with_cut_answers_only_leaves_it_alone(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0)
    collator = DiscriminatorCollator(reader, 4096)
    trainer = Trainer(discriminator, loop(), Runtime())
    for rows in (answers(reader)[:2], answers(reader, ("length", "length", "stop", "stop"))):
        texts = [Text(row.text, "q") for row in rows]
        before = score_texts(discriminator, collator, texts)
        settings = AdversarySettings(learning_rate=1e-2)
        Adversary(discriminator, trainer, collator, settings).learn_and_score(rows, texts)
        assert score_texts(discriminator, collator, texts) == before

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
from stages.adversary.diagnostics import ConstantDiscriminator, SpreadCheck, discriminator_metrics
from stages.adversary.discriminator_model import (
    DiscriminatorCollator,
    DiscriminatorModel,
    Text,
    discriminator_loss,
    score_texts,
    weigh_sides,
)
from stages.config.runtime import Runtime
from stages.groups.response import STUDENT
from stages.training.guard import NonFinite, StepGuard
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.stages.rollout_fixtures import answers, loop, picture
from tests.stages.training.poison import poison_logit, poison_score


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


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_metrics_are_of_the_two_sides_without_negatives(tiny: Callable[[str], Checkpoint], loss: Any) -> None:
    """The first step's metrics are measured before it, so negatives do not change them, but they change the step."""
    seen, logits = [], []
    for negatives in (0, 3):
        adversary = make_adversary(tiny, loss, negatives=negatives)
        rows = answers(adversary.collator.reader)
        texts = [Text(row.text, "q") for row in rows]
        found, metrics = adversary.learn_and_score(rows, texts)
        logits.append(found)
        seen.append({name: value for name, value in metrics.items() if name != "disc/grad_norm"})
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)
    assert logits[0] != pytest.approx(logits[1], abs=1e-4)


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


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_the_packing_of_texts_changes_no_gradient(tiny: Callable[[str], Checkpoint], loss: Any) -> None:
    """Twelve texts in one pack or in several: the same logits in order, loss and norm."""
    found = []
    for budget in (100_000, 128):
        adversary = make_adversary(tiny, loss)
        adversary = replace(adversary, collator=replace(adversary.collator, tokens_per_pack=budget))
        texts = [Text(f"{n}:{n * n}", f"q{n // 4}") for n in range(12)]
        batch = adversary.collator.collate(texts, [STUDENT if n % 4 < 1 + n // 8 else "a" for n in range(12)], loss)
        assert (len(batch.packs) > 1) == (budget == 128)
        logits = adversary.backward(batch, texts)
        found.append((*logits.tolist(), *adversary.trainer.step(1e-3)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_equal_texts_are_read_once_with_the_loss_and_gradient_of_all(tiny: Callable[[str], Checkpoint]) -> None:
    """Texts of both sides and of two teachers, some equal; against Eq. 1 over the logit of each text, packed alone."""
    bodies, writers = ["5", "6", "5", "so 5", "5", "7"], [STUDENT, STUDENT, STUDENT, "a", "a", "b"]
    texts = [Text(body, "q") for body in bodies]
    adversary = make_adversary(tiny)
    discriminator, collator = adversary.discriminator, adversary.collator
    batch = collator.collate(texts, writers, "bce")
    assert sum(len(pack.last) for pack in batch.packs) == 4
    logits = adversary.backward(batch, texts)
    found = [one.grad.clone() for one in discriminator.parameters() if one.grad is not None]
    discriminator.zero_grad()
    alone = torch.cat([discriminator(collator.make_packs([text])[0]) for text in texts])
    assert logits.tolist() == pytest.approx(alone.tolist(), abs=1e-5)
    assert score_texts(discriminator, collator, texts) == pytest.approx(alone.tolist(), abs=1e-5)
    loss = discriminator_loss(alone, torch.tensor([float(one == STUDENT) for one in writers]), weigh_sides(writers))
    together = sum(batch.loss(discriminator(pack).detach(), 0) for pack in batch.packs)
    assert float(together) == pytest.approx(loss.item(), rel=1e-5)
    discriminator.zero_grad()
    loss.backward()
    wanted = [one.grad for one in discriminator.parameters() if one.grad is not None]
    assert len(found) == len(wanted) > 10
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("degenerate", ["unrewarded", "learned"])
@pytest.mark.parametrize("text", ["", "so 5, " * 9, "so 5, so"])
def test_it_learns_from_degenerate_answers_only_if_told_to(
    tiny: Callable[[str], Checkpoint], text: str, degenerate: Any
) -> None:
    """Two whole answers of the teacher, one of the student, and one of the student that is empty, loops or is cut."""
    adversary = make_adversary(tiny, degenerate=degenerate)
    whole, other, *teacher = answers(adversary.collator.reader)
    broken = replace(other, text=text, finish_reason="length" if text == "so 5, so" else "stop")
    collated: list[tuple[list[str], list[str]]] = []

    class Watched(DiscriminatorCollator):
        def collate(self, texts: Any, writers: Any, *others: Any) -> Any:
            collated.append(([one.body for one in texts], list(writers)))
            return super().collate(texts, writers, *others)

    watched = Watched(adversary.collator.reader, 4096)
    rows = [whole, broken, *teacher]
    replace(adversary, collator=watched).learn(rows, [Text(row.text, "q") for row in rows])
    learned = rows if degenerate == "learned" else [whole, *teacher]
    assert collated == [([row.text for row in learned], [row.source for row in learned])]


VALUES = [float("nan"), float("inf"), float("-inf")]


def make_adversary(tiny: Callable[[str], Checkpoint], loss: Any = "bce", **settings: Any) -> Adversary:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0)
    collator = DiscriminatorCollator(reader, 4096, together=loss == "bradley_terry")
    trainer = Trainer(discriminator, loop(learning_rate=1e-3), Runtime())
    trainer.guard = StepGuard("ril", 6)
    chosen = AdversarySettings(loss, learning_rate=1e-3, **settings)
    return Adversary(discriminator, trainer, collator, chosen, SpreadCheck(1e-3))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_a_logit_that_is_not_finite_ends_training(
    tiny: Callable[[str], Checkpoint], loss: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the pairwise loss is finite: softplus(-inf) is 0."""
    adversary = make_adversary(tiny, loss)
    rows = answers(adversary.collator.reader)
    texts = [Text(row.text, f"q{place // 4}") for place, row in enumerate(rows)]
    before = {name: tensor.clone() for name, tensor in adversary.discriminator.state_dict().items()}
    poison_logit(monkeypatch, value, 0)
    with pytest.raises(NonFinite, match=r"ril: step 7: logit of the discriminator is .* on question q0"):
        adversary.learn_and_score(rows, texts)
    assert all(torch.equal(before[name], tensor) for name, tensor in adversary.discriminator.state_dict().items())


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("update", ["before_scoring", "after_scoring", "frozen"])
def test_a_logit_that_is_not_finite_is_no_reward(
    tiny: Callable[[str], Checkpoint], update: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    adversary = make_adversary(tiny, update=update)
    rows = answers(adversary.collator.reader)
    poison_score(monkeypatch, value, 0)
    with pytest.raises(NonFinite, match=r"logit of the discriminator is .* on question q0"):
        adversary.learn_and_score(rows, [Text(row.text, f"q{place}") for place, row in enumerate(rows)])


def test_a_constant_discriminator_is_said_and_ends_training(tiny: Callable[[str], Checkpoint]) -> None:
    adversary, said = make_adversary(tiny, update="frozen"), list[str]()
    adversary.trainer.guard.say = said.append
    rows = answers(adversary.collator.reader)
    texts = [Text(row.text, f"q{place}") for place, row in enumerate(rows)]
    adversary.learn_and_score(rows, texts)
    assert said == [], "random weights have opinions"
    torch.nn.init.zeros_(adversary.discriminator.score.weight)
    torch.nn.init.constant_(adversary.discriminator.score.bias, 2.0)
    for _ in range(2):
        adversary.learn_and_score(rows, texts)
    assert len(said) == 2
    assert "ril: step 7: the discriminator is constant: the logits of 4 different texts" in said[0]
    with pytest.raises(ConstantDiscriminator, match=r"deviation of 0, below discriminator.min_logit_spread = 0.001"):
        adversary.learn_and_score(rows, texts)


def test_equal_texts_have_equal_logits() -> None:
    check = SpreadCheck(1e-3)
    assert [check.check([0.5] * 8, ["the same"] * 8) for _ in range(5)] == [None] * 5
    assert check.check([0.5] * 8, [str(number) for number in range(8)]) is not None
    assert check.check([float(number) for number in range(8)], [str(number) for number in range(8)]) is None
    assert check.steps == 0

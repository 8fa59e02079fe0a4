"""The updates of a step on tiny models: every switch moves the student as its formula says, mu > 1, the order of
scoring.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from stages.adversary.adversary import discriminate, told_apart
from stages.adversary.discriminator import Discriminator, Exhibits, Text, logits_of
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.switches import PAPER, Objective
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, packs
from stages.groups.response import STUDENT, Row
from stages.policy import update
from stages.policy.rewards import rewarded_group
from stages.policy.update import Rewards, update_student
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Network, Reader, load_network, load_reader

LOGITS = [1.0, -1.0, -2.0, 0.5]


class Gradients:
    """A trainer that keeps the gradient; with a rate it takes a step of that length along it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.kept, self.packs = model, [], 0  # type: ignore[var-annotated]

    sharded = False

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()
        self.packs += 1

    def step(self, rate: float) -> float:
        named = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        self.kept.append({name: p.grad.clone() for name, p in named.items()})
        norm = torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None])
        with torch.no_grad():
            for p in named.values():
                p -= rate * p.grad / norm.clamp(min=1e-12)
        self.model.zero_grad()
        return 1.0


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((84, 84)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def loop(**changed: Any) -> Ril:
    values: dict[str, Any] = {
        "steps": 9,
        "learning_rate": 1e-2,
        "discriminator_learning_rate": 1e-3,
        "tokens_per_pack": 4096,
    }
    return Ril(**{**values, "sampling": Sampling(max_tokens=16), **changed})


def answers(reader: Reader, reasons: Sequence[str] = ("stop",) * 4) -> list[Row]:
    texts, verdicts = ["3:3,8:11", "28", "so 5", "16 is the sum"], [0, 1, 1, 0]
    rows = zip(texts, reasons, verdicts, strict=True)
    return [
        Row(STUDENT if n < 2 else "teacher", text, tuple(reader.chat.response_ids(text)), reason, verdict)
        for n, (text, reason, verdict) in enumerate(rows)
    ]


Made = tuple[Network, Network, Reader]


@pytest.fixture
def made(tiny: Callable[[str], Checkpoint]) -> Made:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    student, reference = load_network(checkpoint, reader), load_network(checkpoint, reader)
    reference.model.requires_grad_(False)
    student.freeze_vision()
    with torch.no_grad():
        for p in student.text.parameters():
            p.add_(0.02 * torch.sin(torch.arange(p.numel()).float()).reshape(p.shape))
    return student, reference, reader


def stepped(
    made: Made, objective: Objective = PAPER, rows: list[Row] | None = None, rate: float = 0.0, **changed: Any
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]]]:
    student, reference, reader = made
    prompts = reader.prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])] * 2)
    group = tuple(rewarded_group(rows or answers(reader), LOGITS, objective))
    trainer = Gradients(student.model)
    block = loop(**changed)
    logged = update_student(student, trainer, reference, [Rewards(p, group) for p in prompts], block, rate, objective)
    return logged, trainer.kept


def by_hand(
    made: Made, weights: Sequence[float], beta: float = 0.01, kl: str = "k3", divisor: float = 4 * 16.0
) -> dict[str, torch.Tensor]:
    """Gradient of -sum w log p / divisor + beta KL / divisor over one question's four answers, from one forward pass of
    each.
    """
    student, reference, reader = made
    (prompt,) = reader.prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])])
    student.model.zero_grad()
    for row, weight in zip(answers(reader), weights, strict=True):
        (pack,) = packs([Group(prompt, (row.token_ids,))], 4096)
        log_probs = response_log_probs(student, pack)
        with torch.no_grad():
            wanted = response_log_probs(reference, pack)
        gap = wanted - log_probs
        term = {"k3": gap.exp() - gap - 1, "k2": gap**2 / 2, "none": 0 * gap}[kl]
        ((beta * term - weight * log_probs).sum() / divisor).backward()
    gradient = {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}
    student.model.zero_grad()
    return gradient


def same(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((ours[name] - gradient).abs().max()) < 1e-4 * float(gradient.abs().max().clamp(min=1e-5)), name


def test_the_papers_update_is_equation_2(made: Made) -> None:
    logged, (gradient,) = stepped(made)
    same(gradient, by_hand(made, [-1, 1, 1, -1]))
    assert logged["ratio"] == 1.0
    assert logged["clip_ratio"] == 0.0
    assert {"kl/student", "kl/teacher", "entropy/student", "entropy/teacher", "kl/far"} <= set(logged)


@pytest.mark.parametrize(
    ("switches", "weights", "divisor"),
    [
        ({"ratio": "sequence"}, [-1, 1, 1, -1], 64.0),
        ({"ratio": "gspo"}, [-1, 1, 1, -1], 64.0),
        ({"teacher_rows": "sft"}, [-1, 1, 1, 0], 64.0),
        ({"baseline": "per_source"}, [-1, 1, 1, -1], 64.0),
    ],
)
def test_switches_move_the_gradient_as_they_say(
    made: Made, switches: dict[str, Any], weights: list[float], divisor: float
) -> None:
    _, (gradient,) = stepped(made, replace(PAPER, **switches))
    same(gradient, by_hand(made, weights, divisor=divisor))


def test_rows_outside_the_loss_have_no_gradient(made: Made) -> None:
    """A masked row still counts in the mean of the group and of the step; its KL term is out too."""
    rows = answers(made[2], ("length", "stop", "stop", "stop"))
    _, (masked,) = stepped(made, replace(PAPER, truncated="masked"), rows)
    reader = made[2]
    _, (kept,) = stepped(made, PAPER, rows)
    assert any(not torch.equal(masked[name], kept[name]) for name in kept)
    _, (nothing,) = stepped(made, replace(PAPER, truncated="masked"), answers(reader, ("length",) * 4))
    assert all(not gradient.any() for gradient in nothing.values())


def test_kl_has_its_own_treatment_of_teacher_rows(made: Made) -> None:
    zero = replace(PAPER, similarity_weight=0.0, answer_weight=0.0)
    _, (same_kl,) = stepped(made, zero, kl_weight=1.0)
    same(same_kl, by_hand(made, [0] * 4, beta=1.0))
    _, (k2s,) = stepped(made, replace(zero, kl="k2"), kl_weight=1.0)
    same(k2s, by_hand(made, [0] * 4, beta=1.0, kl="k2"))
    _, (students,) = stepped(made, replace(zero, kl_on_teacher_rows="none"), kl_weight=1.0)
    _, (teachers,) = stepped(made, replace(zero, kl="k2", kl_on_teacher_rows="k3"), kl_weight=1.0)
    assert any(not torch.allclose(students[name], same_kl[name]) for name in students)
    assert any(not torch.allclose(teachers[name], k2s[name]) for name in teachers)


def test_full_kl_is_exact_and_has_its_minimum_at_the_reference(made: Made, tiny: Callable[[str], Checkpoint]) -> None:
    zero = replace(PAPER, similarity_weight=0.0, answer_weight=0.0, kl="full")
    _, (gradient,) = stepped(made, zero, kl_weight=1.0)
    assert any(g.abs().max() > 1e-6 for g in gradient.values())
    reference = made[1]
    fresh = load_network(tiny("qwen2_5_vl"), made[2])
    fresh.freeze_vision()
    _, (none,) = stepped((fresh, reference, made[2]), zero, kl_weight=1.0)
    assert all(float(g.abs().max()) < 1e-6 for g in none.values())


def test_several_inner_updates_run_no_pass_for_old_log_probs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log-probabilities are those of the first inner update: mu passes of the student, 1 of the reference."""
    calls: list[Network] = []
    real = update.predicting_states
    monkeypatch.setattr(
        update, "predicting_states", lambda network, *rest: calls.append(network) or real(network, *rest)
    )
    logged, gradients = stepped(made, rate=1e-4, inner_updates=3)
    assert [network is made[0] for network in calls].count(True) == 3
    assert [network is made[1] for network in calls].count(True) == 1
    assert len(gradients) == 3
    assert logged["ratio"] == 1.0
    assert 1e-6 < abs(logged["ratio/last"] - 1.0) < 0.9
    calls.clear()
    stepped(made)
    assert len(calls) == 2


@pytest.mark.parametrize("ratio", ["token", "sequence", "gspo"])
def test_at_mu_above_one_the_clip_acts(made: Made, ratio: Any) -> None:
    narrow = replace(PAPER, ratio=ratio, clip_low=1e-3, clip_high=1e-3)
    logged, _ = stepped(made, narrow, rate=1e-4, inner_updates=2)
    assert logged["clip_ratio"] == 0.0
    assert 0 < logged["clip_ratio/last"] <= 1
    assert 1e-6 < abs(logged["ratio/last"] - 1.0) < 0.9


def test_a_correction_without_the_engines_log_probs_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match=r"ril.rollout_correction is 'truncate_token'.*set it to none"):
        stepped(made, replace(PAPER, rollout_correction="truncate_token"))


def test_a_correction_scales_student_rows_only(made: Made) -> None:
    student, _, reader = made
    (prompt,) = reader.prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])])
    rows = []
    for row in answers(reader):
        (pack,) = packs([Group(prompt, (row.token_ids,))], 4096)
        with torch.no_grad():
            seen = response_log_probs(student, pack) - torch.log(
                torch.tensor(2.0)
            )  # the engine saw half of each probability
        rows.append(replace(row, sampled_log_probs=tuple(seen.tolist())) if row.source == STUDENT else row)
    _, (gradient,) = stepped(made, replace(PAPER, rollout_correction="truncate_token", rollout_cap=3.0), rows)
    same(gradient, by_hand(made, [-2, 2, 1, -1]))


# --- the discriminator's turn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sees", ["response", "question", "question_and_image"])
@pytest.mark.parametrize("order", ["before_scoring", "after_scoring", "frozen"])
def test_the_order_of_learning_and_scoring(tiny: Callable[[str], Checkpoint], order: Any, sees: Any) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = Discriminator(load_network(checkpoint, reader), 0, sees)
    exhibits = Exhibits(reader, 4096, sees)
    rows = [row for _ in range(2) for row in answers(reader)]
    message = [{"role": "user", "content": "<image>What is the sum?"}]
    texts = [Text(row.text, str(number // 4), message, (picture(),)) for number, row in enumerate(rows)]
    before = logits_of(discriminator, exhibits, texts)
    trainer = Trainer(discriminator, loop(), Runtime())
    objective = replace(PAPER, discriminator_update=order)
    scored, seen = discriminate(discriminator, trainer, exhibits, rows, texts, objective, 1, 1e-2)
    after = logits_of(discriminator, exhibits, texts)
    assert scored == pytest.approx(after if order == "before_scoring" else before)
    assert (after == before) == (order == "frozen")
    assert {"disc/acc", "disc/acc_student", "disc/acc_teacher", "disc/logit_gap", "disc/entropy"} <= set(seen)
    assert 0 <= seen["disc/acc"] <= 1


def test_what_is_told_apart_is_told_by_teacher() -> None:
    """Two texts of the student, one of each teacher: accuracies, gaps and cross entropies by hand."""
    seen = told_apart(torch.tensor([2.0, -1.0, -3.0, 0.5]), [STUDENT, STUDENT, "a", "b"])
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
    assert math.isnan(told_apart(torch.tensor([2.0]), [STUDENT])["disc/acc"])


def test_it_pauses_where_it_is_too_good_and_learns_from_pairs(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = Discriminator(load_network(checkpoint, reader), 0)
    exhibits = Exhibits(reader, 4096, together=True)
    rows = answers(reader)
    texts = [Text(row.text, "q") for row in rows]
    trainer = Trainer(discriminator, loop(learning_rate=1e-3), Runtime())
    pairs = replace(PAPER, discriminator_loss="bradley_terry")
    losses = [
        discriminate(discriminator, trainer, exhibits, rows, texts, pairs, 1, 1e-3)[1]["disc/loss"] for _ in range(20)
    ]
    assert losses[-1] < 0.5 * losses[0]
    learned = logits_of(discriminator, exhibits, texts)
    assert min(learned[:2]) > max(learned[2:]), "high for the student, low for the teacher (trap T36)"
    _, seen = discriminate(discriminator, trainer, exhibits, rows, texts, pairs, 1, 1e-3, pause_above=0.6)
    assert seen["disc/acc"] > 0.6
    assert logits_of(discriminator, exhibits, texts) == learned


def test_a_discriminator_that_sees_images_tells_them_apart(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    message = [{"role": "user", "content": "<image>What is the sum?"}]
    other = io.BytesIO()
    Image.new("RGB", (84, 84), (255, 0, 0)).save(other, "PNG")
    shown = [Text("28", "a", message, (picture(),)), Text("28", "b", message, (other.getvalue(),))]
    for sees, differ in (("response", False), ("question", False), ("question_and_image", True)):
        discriminator = Discriminator(load_network(checkpoint, reader), 0, sees)  # type: ignore[arg-type]
        first, second = logits_of(discriminator, Exhibits(reader, 4096, sees), shown)  # type: ignore[arg-type]
        assert (abs(first - second) > 1e-6) == differ, sees


def test_a_step_with_one_side_only_or_with_cut_answers_only_leaves_it_alone(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = Discriminator(load_network(checkpoint, reader), 0)
    exhibits = Exhibits(reader, 4096)
    trainer = Trainer(discriminator, loop(), Runtime())
    for rows in (answers(reader)[:2], answers(reader, ("length", "length", "stop", "stop"))):
        texts = [Text(row.text, "q") for row in rows]
        before = logits_of(discriminator, exhibits, texts)
        discriminate(discriminator, trainer, exhibits, rows, texts, PAPER, 1, 1e-2)
        assert logits_of(discriminator, exhibits, texts) == before

"""The updates of a step on tiny models: every switch moves the student as its formula says, mu > 1, the order of
scoring.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.config.objective import PAPER, Objective
from stages.config.runtime import Runtime
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.groups.response import STUDENT, Response
from stages.policy import policy as policy_module
from stages.policy.batch import RewardedGroup
from stages.policy.policy import Policy
from stages.policy.rewards import score_group
from stages.training.guard import NonFinite, StepGuard
from stages.training.passes import PaddingGroups
from stages.training.ranks import Ranks
from stages.training.trainer import StepResult, Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Network, Reader, load_network, load_reader
from tests.stages.rollout_fixtures import answers, loop, picture
from tests.stages.training.poison import VALUES, poison_entropies, poison_gradient, poison_reference

LOGITS = [1.0, -1.0, -2.0, 0.5]


class Gradients:
    """A trainer that keeps the gradient; with a rate it takes a step of that length along it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.kept, self.packs = model, [], 0  # type: ignore[var-annotated]
        self.lasts: list[bool] = []

    sharded = False

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()

    def backward(self, loss: torch.Tensor, last: bool, ids: Sequence[str] = ()) -> float:
        loss.backward()
        self.packs += 1
        self.lasts.append(last)
        return float(loss.detach())

    def step(self, rate: float) -> StepResult:
        named = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        self.kept.append({name: p.grad.clone() for name, p in named.items()})
        norm = torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None])
        with torch.no_grad():
            for p in named.values():
                p -= rate * p.grad / norm.clamp(min=1e-12)
        self.model.zero_grad()
        return StepResult(1.0, 1.0)


Made = tuple[Network, Network, Reader]


@pytest.fixture
def made(tiny: Callable[[str], Checkpoint]) -> Made:
    """A student near its reference; with the checkpoint's scaled head, a KL term of 1e12 would hide all others."""
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    student, reference = load_network(checkpoint, reader), load_network(checkpoint, reader)
    reference.model.requires_grad_(False)
    student.freeze_vision()
    with torch.no_grad():
        for network in (student, reference):
            network.head.weight.div_(40)
        for p in student.text.parameters():
            p.add_(0.02 * torch.sin(torch.arange(p.numel()).float()).reshape(p.shape))
    return student, reference, reader


def stepped(
    made: Made, objective: Objective = PAPER, rows: list[Response] | None = None, rate: float = 0.0, **changed: Any
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]]]:
    student, reference, reader = made
    prompts = reader.make_prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])] * 2)
    group = tuple(score_group(rows or answers(reader), LOGITS, objective))
    trainer = Gradients(student.model)
    block = loop(**changed)
    policy = Policy(student, reference, trainer, block, objective)  # type: ignore[arg-type]
    logged = policy.update([RewardedGroup(p, group) for p in prompts], rate)
    return logged, trainer.kept


def by_hand(
    made: Made, weights: Sequence[float], beta: float = 0.01, kl: str | Sequence[str] = "k3", divisor: float = 4 * 16.0
) -> dict[str, torch.Tensor]:
    """Gradient of -sum w log p / divisor + beta KL / divisor over one question's four answers, from one forward pass of
    each. `kl` is one estimator, or one of each answer.
    """
    student, reference, reader = made
    (prompt,) = reader.make_prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])])
    student.model.zero_grad()
    kinds = [kl] * 4 if isinstance(kl, str) else kl
    for row, weight, kind in zip(answers(reader), weights, kinds, strict=True):
        (pack,) = make_packs([Group(prompt, (row.token_ids,))], 4096)
        log_probs = response_log_probs(student, pack)
        with torch.no_grad():
            wanted = response_log_probs(reference, pack)
        gap = wanted - log_probs
        term = {"k3": gap.exp() - gap - 1, "k2": gap**2 / 2, "none": 0 * gap}[kind]
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
    same(students, by_hand(made, [0] * 4, beta=1.0, kl=["k3", "k3", "none", "none"]))
    same(teachers, by_hand(made, [0] * 4, beta=1.0, kl=["k2", "k2", "k3", "k3"]))


def test_full_kl_is_exact_and_has_its_minimum_at_the_reference(made: Made, tiny: Callable[[str], Checkpoint]) -> None:
    zero = replace(PAPER, similarity_weight=0.0, answer_weight=0.0, kl="full")
    _, (gradient,) = stepped(made, zero, kl_weight=1.0)
    assert any(g.abs().max() > 1e-6 for g in gradient.values())
    reference = made[1]
    fresh = load_network(tiny("qwen2_5_vl"), made[2])
    fresh.freeze_vision()
    with torch.no_grad():
        fresh.head.weight.copy_(reference.head.weight)
    _, (none,) = stepped((fresh, reference, made[2]), zero, kl_weight=1.0)
    assert all(float(g.abs().max()) < 1e-6 for g in none.values())


def test_several_inner_updates_run_no_pass_for_old_log_probs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log-probabilities are those of the first inner update: mu passes of the student, 1 of the reference."""
    calls: list[Network] = []
    real, loss = policy_module.predicting_states, policy_module.policy_loss
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(log_probs: torch.Tensor, old: torch.Tensor, inputs: Any) -> Any:
        given.append((log_probs.detach(), old))
        return loss(log_probs, old, inputs)

    monkeypatch.setattr(policy_module, "policy_loss", recorded)
    monkeypatch.setattr(
        policy_module, "predicting_states", lambda network, *rest: calls.append(network) or real(network, *rest)
    )
    logged, gradients = stepped(made, rate=1e-4, inner_updates=3)
    assert [network is made[0] for network in calls].count(True) == 3
    assert [network is made[1] for network in calls].count(True) == 1
    assert len(gradients) == 3
    assert logged["ratio"] == 1.0
    assert 1e-6 < abs(logged["ratio/last"] - 1.0) < 0.9
    assert [torch.equal(old, given[0][0]) for _, old in given] == [True] * 3
    assert [torch.equal(now, given[0][0]) for now, _ in given] == [True, False, False]
    calls.clear()
    stepped(made)
    assert len(calls) == 2


@pytest.mark.parametrize("ratio", ["token", "sequence", "gspo"])
def test_at_mu_above_one_the_clip_acts(made: Made, ratio: Any) -> None:
    narrow = replace(PAPER, ratio=ratio, clip_low=1e-4, clip_high=1e-4)
    logged, _ = stepped(made, narrow, rate=1e-4, inner_updates=2)
    assert logged["clip_ratio"] == 0.0
    assert 0 < logged["clip_ratio/last"] <= 1
    assert 1e-6 < abs(logged["ratio/last"] - 1.0) < 0.9


def test_a_correction_without_the_engines_log_probs_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match=r"ril.rollout_correction is 'truncate_token'.*set it to none"):
        stepped(made, replace(PAPER, rollout_correction="truncate_token"))


def test_a_correction_scales_student_rows_only(made: Made) -> None:
    student, _, reader = made
    (prompt,) = reader.make_prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])])
    rows = []
    for row in answers(reader):
        (pack,) = make_packs([Group(prompt, (row.token_ids,))], 4096)
        with torch.no_grad():
            seen = response_log_probs(student, pack) - torch.log(
                torch.tensor(2.0)
            )  # the engine saw half of each probability
        rows.append(replace(row, sampled_log_probs=tuple(seen.tolist())) if row.source == STUDENT else row)
    _, (gradient,) = stepped(made, replace(PAPER, rollout_correction="truncate_token", rollout_cap=3.0), rows)
    same(gradient, by_hand(made, [-2, 2, 1, -1]))


TERMS = {
    "log-probability": r"log-probability",
    "reference log-probability": r"reference log-probability",
    "advantage": r"advantage",
    "gradient norm": r"gradient norm",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("term", TERMS)
def test_garbage_in_a_term_ends_the_update(
    made: Made, term: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weight has changed, and the message names the term and the question."""
    student, reference, reader = made
    prompts = reader.make_prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])] * 2)
    group = tuple(score_group(answers(reader), LOGITS))
    groups = [RewardedGroup(prompt, group, question_id=f"q{number}") for number, prompt in enumerate(prompts)]
    trainer = Trainer(student.model, loop(), Runtime())
    trainer.guard = StepGuard("ril", 2)
    if term == "log-probability":
        poison_entropies(monkeypatch, value, 0)
    elif term == "reference log-probability":
        poison_reference(monkeypatch, value, 0)
    elif term == "advantage":
        groups[0] = replace(groups[0], responses=(replace(group[0], advantage=value), *group[1:]))
    else:
        poison_gradient(monkeypatch, value, 0)
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    policy = Policy(student, reference, trainer, loop(), padding=PaddingGroups(reader))
    asked = "one of the questions q0, q1" if term == "gradient norm" else "question q0"
    with pytest.raises(NonFinite, match=rf"^ril: step 3: {term} is (nan|-?inf) on {asked}; nothing is written"):
        policy.update(groups, 1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.model.state_dict().items())


def test_the_rows_of_all_ranks_divide_the_loss(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has 24 rows beside the 8 of this one; the gradient is a quarter."""

    class First(Ranks):
        def sum(self, value: float) -> float:
            return value + 24

    monkeypatch.setattr(policy_module, "get_ranks", lambda: First(0, 1))
    _, (gradient,) = stepped(made)
    same(gradient, by_hand(made, [-1, 1, 1, -1], divisor=4 * 4 * 16.0))


def test_each_source_has_the_measures_of_its_own_tokens(made: Made) -> None:
    """The mean k3 over the tokens of the student, of each teacher and of all teachers, from one pass of each row."""
    student, reference, reader = made
    (prompt,) = reader.make_prompts([([{"role": "user", "content": "<image>What is the sum?"}], [picture()])])
    sources = (STUDENT, STUDENT, "a", "b")
    rows = [replace(row, source=source) for row, source in zip(answers(reader), sources, strict=True)]
    found: dict[str, list[float]] = {STUDENT: [], "a": [], "b": [], "teacher": []}
    for row in rows:
        (pack,) = make_packs([Group(prompt, (row.token_ids,))], 4096)
        with torch.no_grad():
            gap = response_log_probs(reference, pack) - response_log_probs(student, pack)
        for name in {row.source, STUDENT if row.source == STUDENT else "teacher"}:
            found[name] += (gap.exp() - gap - 1).tolist()
    logged, _ = stepped(made, rows=rows)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert len(set(means.values())) == 4
    for name, mean in means.items():
        assert logged[f"kl/{name}"] == pytest.approx(mean, rel=1e-3), name


def test_the_last_pack_of_each_inner_update_is_marked(made: Made) -> None:
    """Ranks exchange gradients after it and not before."""
    student, reference, reader = made
    prompts = reader.make_prompts([([{"role": "user", "content": f"What is {n}?"}], []) for n in range(3)])
    group = tuple(score_group(answers(reader), LOGITS))
    trainer = Gradients(student.model)
    policy = Policy(student, reference, trainer, loop(tokens_per_pack=64, inner_updates=2))  # type: ignore[arg-type]
    policy.update([RewardedGroup(prompt, group) for prompt in prompts], 1e-6)
    assert trainer.lasts == [False, False, True] * 2


def test_a_mean_over_each_row_divides_by_its_own_length(made: Made) -> None:
    """GRPO's form: a row's tokens weigh 1 / length, the rows of the step 1 / count."""
    lengths = [len(row.token_ids) for row in answers(made[2])]
    assert len(set(lengths)) > 1
    _, (gradient,) = stepped(made, replace(PAPER, loss_normaliser="row"), kl_weight=0.0)
    weights = [advantage / length for advantage, length in zip([-1, 1, 1, -1], lengths, strict=True)]
    same(gradient, by_hand(made, weights, beta=0.0, divisor=4.0))


def test_a_step_without_a_group_has_no_loss(made: Made) -> None:
    student, reference, reader = made
    (prompt,) = reader.make_prompts([([{"role": "user", "content": "What is the sum?"}], [])])
    policy = Policy(student, reference, Gradients(student.model), loop())  # type: ignore[arg-type]
    assert policy.update([RewardedGroup(prompt, ())], 1e-3) == {"loss": None, "grad_norm": 0.0}

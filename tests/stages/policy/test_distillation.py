"""The loss of on-policy distillation against its formula, written out in plain Python, in fp64."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.discriminator import DiscriminatorSwitches
from stages.config.objective import Objective
from stages.config.ril import Switches
from stages.groups.pack import Group, make_packs
from stages.groups.response import STUDENT, Response
from stages.job import metric_names as names
from stages.policy.batch import PolicyBatch, TokenMeans
from stages.policy.loss import policy_loss
from stages.policy.policy import Policy
from stages.policy.rewards import ScoredResponse, score_group
from stages.vlm.reader import Prompt

OPD: Objective = Switches(objective="opd").resolve(DiscriminatorSwitches())
TEACHERS = ("first", "second", "third")
LOW, HIGH = 0.2, 0.28


def make_prompt(tokens: int) -> Prompt:
    ids = torch.arange(tokens)
    return Prompt(ids, ids[None], None)


def make_policy(count: int, objective: Objective, kl_weight: float) -> Any:
    """What `Policy._make_loss_inputs` reads of a policy."""
    return SimpleNamespace(
        objective=objective, block=SimpleNamespace(distillation=TEACHERS[:count], kl_weight=kl_weight)
    )


def draw_answers(draw: torch.Generator, lengths: Sequence[int], count: int, finishes: Sequence[int]) -> list[Response]:
    """Answers of so many tokens with log p under `count` teachers; 1 in `finishes` is cut, 2 no teacher could score."""
    found = []
    for length, finish in zip(lengths, finishes, strict=True):
        values = (-4 * torch.rand(count, length, generator=draw, dtype=torch.float64)).tolist()
        scored = () if finish == 2 else tuple(map(tuple, values))
        reason = "length" if finish == 1 else "stop"
        found.append(Response(STUDENT, "t", tuple(range(length)), reason, None, teacher_log_probs=scored))
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["token", "gspo"]),
    st.sampled_from(["constant", "row"]),
    st.sampled_from(["wrong", "masked"]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
def test_loss_and_gradient_are_the_formula(
    seed: int,
    groups: list[list[tuple[int, int]]],
    count: int,
    ratio: Any,
    normaliser: Any,
    truncated: Any,
    kl_weight: float,
    moved: bool,
) -> None:
    """Packs with shared prompts, one to three teachers, rows cut or not scored, before and after an inner update."""
    objective = replace(OPD, ratio=ratio, loss_normaliser=normaliser, truncated=truncated, clip_low=LOW, clip_high=HIGH)
    draw = torch.Generator().manual_seed(seed)
    rows = [draw_answers(draw, [n for n, _ in one], count, [finish for _, finish in one]) for one in groups]
    scored = [score_group(one, None, objective) for one in rows]
    packed = [
        Group(make_prompt(3 + number), tuple(one.token_ids for one in group)) for number, group in enumerate(rows)
    ]
    policy = make_policy(count, objective, kl_weight)
    for pack in make_packs(packed, 24):
        responses = [one for number in pack.groups for one in scored[number]]
        size = len(pack.targets)
        old = -3 * torch.rand(size, generator=draw, dtype=torch.float64)
        reference = -3 * torch.rand(size, generator=draw, dtype=torch.float64)
        step = 0.5 * torch.randn(size, generator=draw, dtype=torch.float64) * moved
        log_probs = (old + step).requires_grad_()
        batch = PolicyBatch(pack, responses, None, None, reference)
        loss, _ = policy_loss(log_probs, old, Policy._make_loss_inputs(policy, batch, old, 7.0, None))
        (gradient,) = torch.autograd.grad(loss, log_probs)
        wanted, slopes = write_out(
            responses, log_probs.tolist(), old.tolist(), reference.tolist(), objective, kl_weight
        )
        assert float(loss.detach()) == pytest.approx(wanted, abs=1e-10)
        assert gradient.tolist() == pytest.approx(slopes, abs=1e-10)


def write_out(
    responses: Sequence[ScoredResponse],
    now: Sequence[float],
    old: Sequence[float],
    reference: Sequence[float],
    objective: Objective,
    kl_weight: float,
) -> tuple[float, list[float]]:
    """-(1/7) sum w [min(rho A, clip(rho) A) - beta k3], A = -(log p_old - mean log p_teacher), and its slopes."""
    loss, slopes, start = 0.0, list[float](), 0
    for one in responses:
        values, length = one.response.teacher_log_probs, len(one.response.token_ids)
        assert values is not None
        places = range(start, start + length)
        start += length
        masked = values == () or (one.response.finish_reason == "length" and objective.truncated == "masked")
        weight = 0.0 if masked else 1 / 7
        if objective.loss_normaliser == "row":  # in fp32 whatever the precision of the rest
            weight *= float(torch.tensor(1.0) / length)
        mean_gap = sum(now[at] - old[at] for at in places) / length
        for token, at in enumerate(places):
            means = sum(teacher[token] for teacher in values) / len(values) if values else 0.0
            advantage = -(old[at] - means)
            rho = math.exp(now[at] - old[at] if objective.ratio == "token" else mean_gap)
            clipped = min(max(rho, 1 - LOW), 1 + HIGH)
            gain = min(rho * advantage, clipped * advantage)
            slope = rho * advantage if rho * advantage <= clipped * advantage else 0.0
            gap = reference[at] - now[at]
            loss -= weight * (gain - kl_weight * (math.exp(gap) - gap - 1))
            slopes.append(-weight * (slope - kl_weight * (1 - math.exp(gap))))
    return loss, slopes


def test_the_expected_gradient_is_that_of_the_mean_reverse_kl() -> None:
    """Over all tokens of a vocabulary, weighted by the student's p: softmax logits z, KL(p || q_i), mean over i."""
    draw = torch.Generator().manual_seed(4)
    z = torch.randn(9, generator=draw, dtype=torch.float64, requires_grad=True)
    teachers = torch.randn(3, 9, generator=draw, dtype=torch.float64).log_softmax(1)
    log_p = z.log_softmax(0)
    (wanted,) = torch.autograd.grad((log_p.exp() * (log_p - teachers)).sum(1).mean(), z)
    response = Response(
        STUDENT, "t", tuple(range(9)), "stop", None, teacher_log_probs=tuple(map(tuple, teachers.tolist()))
    )
    (pack,) = make_packs([Group(make_prompt(2), (response.token_ids,))], 64)
    batch = PolicyBatch(pack, score_group([response], None, OPD), None, None, log_p.detach())
    log_p = z.log_softmax(0)
    inputs = Policy._make_loss_inputs(make_policy(3, OPD, 0.0), batch, log_p.detach(), 1.0, None)
    assert inputs.advantages.tolist() == pytest.approx((teachers.mean(0) - log_p.detach()).tolist(), abs=1e-12)
    weighted = replace(inputs, weights=log_p.detach().exp())
    loss, _ = policy_loss(log_p, log_p.detach(), weighted)
    (found,) = torch.autograd.grad(loss, z)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_rewards_add_their_advantage_to_every_token() -> None:
    """Two answers, one right: A of the judge is 1/2 and -1/2."""
    objective = Switches(objective="opd", answer_weight=1.0).resolve(DiscriminatorSwitches())
    rows = [Response(STUDENT, "t", (1, 2), "stop", verdict, teacher_log_probs=((-1.0, -2.0),)) for verdict in (1, 0)]
    (pack,) = make_packs([Group(make_prompt(2), tuple(one.token_ids for one in rows))], 64)
    batch = PolicyBatch(pack, score_group(rows, None, objective), None, None, torch.zeros(4))
    old = torch.full((4,), -3.0)
    inputs = Policy._make_loss_inputs(make_policy(1, objective, 0.0), batch, old, 1.0, None)
    assert inputs.advantages.tolist() == [2.5, 1.5, 1.5, 0.5]


def test_an_answer_that_nobody_scored_is_no_answer_with_zeros() -> None:
    row = Response(STUDENT, "t", (1,), "stop", None)
    (pack,) = make_packs([Group(make_prompt(2), (row.token_ids,))], 64)
    batch = PolicyBatch(pack, score_group([row], None, OPD), None, None, torch.zeros(1))
    with pytest.raises(ValueError, match="no log probabilities of teachers"):
        batch.stack_teachers(1, torch.zeros(1))


def test_the_curve_has_the_answers_that_were_scored_alone() -> None:
    rows = [
        Response(STUDENT, "t", (1, 2), "stop", None, teacher_log_probs=((-1.0, -2.0), (-3.0, -4.0))),
        Response(STUDENT, "t", (1,), "stop", None, teacher_log_probs=()),
    ]
    (pack,) = make_packs([Group(make_prompt(2), tuple(one.token_ids for one in rows))], 64)
    batch = PolicyBatch(pack, score_group(rows, None, OPD), None, None, torch.zeros(3))
    means = TokenMeans()
    Policy._measure_divergence(make_policy(2, OPD, 0.0), torch.tensor([-0.5, -0.5, -9.0]), batch, means)
    assert means.compute_means() == {
        names.REVERSE_KL_OF.format("first"): 1.0,
        names.REVERSE_KL_OF.format("second"): 3.0,
        names.REVERSE_KL: 2.0,
    }

"""Rewards, advantages and Eq. 2 against the paper's check values and against what is known of them in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.groups.response import STUDENT, Response
from stages.policy.loss import LossInputs, k3, policy_loss
from stages.policy.rewards import group_advantages, score_group, similarity_reward


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def rows(verdicts: list[int | None], reasons: list[str] | None = None) -> list[Response]:
    reasons = reasons or ["stop"] * len(verdicts)
    return [
        Response(STUDENT if i < 2 else "teacher", "t", (1,), r, v)
        for i, (v, r) in enumerate(zip(verdicts, reasons, strict=True))
    ]


def test_check_values_of_the_paper() -> None:
    """G = 2: D = [.9 .3 | .2 .6], verdicts [0 1 | 1 0] give R = [0 2 2 0] and A = [-1 1 1 -1]."""
    found = score_group(rows([0, 1, 1, 0]), [logit(d) for d in (0.9, 0.3, 0.2, 0.6)])
    assert [row.reward for row in found] == [0, 2, 2, 0]
    assert [row.advantage for row in found] == [-1, 1, 1, -1]


def test_half_earns_nothing() -> None:
    assert similarity_reward(0.0) == 0
    assert similarity_reward(-1e-7) == 1


def test_a_failed_verdict_leaves_group_and_baseline() -> None:
    with_failure = score_group(rows([1, None, 1, 0]), [1.0, -1.0, -1.0, -1.0])
    without = score_group([row for row in rows([1, None, 1, 0]) if row.verdict is not None], [1.0, -1.0, -1.0])
    assert [row.advantage for row in with_failure] == [row.advantage for row in without]
    assert len(with_failure) == 3


def test_a_cut_answer_has_no_answer_reward() -> None:
    found = score_group(rows([1, 1, 1, 1], ["length", "stop", "stop", "stop"]), [1.0] * 4)
    assert [row.answer for row in found] == [0, 1, 1, 1]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=16))
def test_advantages_sum_to_zero(rewards: list[int]) -> None:
    assert sum(group_advantages(rewards)) == pytest.approx(0, abs=1e-9)


def random_policy(seed: int, kl_weight: float) -> tuple[torch.Tensor, torch.Tensor, LossInputs]:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (-3 * torch.rand(40, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = -3 * torch.rand(40, generator=generator, dtype=torch.float64)
    old = log_probs.detach() + 0.6 * torch.randn(40, generator=generator, dtype=torch.float64)
    advantages = torch.randn(40, generator=generator, dtype=torch.float64)
    return log_probs, old, LossInputs(advantages, reference, 0.2, 0.2, kl_weight, 8 * 16.0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kl_weight", [0.0, 0.01])
def test_loss_and_gradient_equal_the_formula(seed: int, kl_weight: float) -> None:
    """Token by token: the clipped side is taken only where it is the smaller one, and then has no gradient."""
    log_probs, old, policy = random_policy(seed, kl_weight)
    loss, _ = policy_loss(log_probs, old, policy)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    expected, slopes = 0.0, []
    for new, before, ref, a in zip(
        log_probs.tolist(), old.tolist(), policy.reference.tolist(), policy.advantages.tolist(), strict=True
    ):
        ratio = math.exp(new - before)
        clipped = min(max(ratio, 0.8), 1.2)
        expected -= min(ratio * a, clipped * a) - kl_weight * (math.exp(ref - new) - (ref - new) - 1)
        active = ratio * a <= clipped * a
        slopes.append(-(ratio * a if active else 0.0) + kl_weight * (1 - math.exp(ref - new)))
    assert float(loss) == pytest.approx(expected / 128, abs=1e-12)
    assert torch.allclose(gradient, torch.tensor(slopes, dtype=torch.float64) / 128, atol=1e-12)


def test_at_one_inner_update_the_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    log_probs, _, policy = random_policy(0, 0.0)
    loss, seen = policy_loss(log_probs, log_probs.detach(), policy)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert {name: values.unique().tolist() for name, values in seen.items()} == {
        "ratio": [1.0],
        "clip_ratio": [0.0],
        "kl/far": [0.0],
    }
    assert torch.allclose(gradient, -policy.advantages / policy.normaliser, atol=1e-15)


@pytest.mark.parametrize("gap", [1e-6, 0.1, 1.0, 10.0, 30.0])
def test_k3_is_never_clamped(gap: float) -> None:
    log_probs = torch.tensor([-gap], dtype=torch.float64, requires_grad=True)
    value = k3(log_probs, torch.zeros(1, dtype=torch.float64))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(math.exp(gap) - gap - 1, rel=1e-9, abs=1e-15)
    assert log_probs.grad is not None
    assert float(log_probs.grad) == pytest.approx(1 - math.exp(gap), rel=1e-9)

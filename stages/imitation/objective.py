"""The student's objective (Eq. 2) on the response tokens of a pack, as a loss to be made small."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """What Eq. 2 needs beside log-probabilities, for one pack."""

    advantages: Tensor  # [N] fp32: the advantage of each token's response
    reference: Tensor  # [N] fp32: log p of each token under the SFT student
    clip_epsilon: float
    kl_weight: float
    normaliser: float  # rows of the step times max_tokens: Dr.GRPO's constant, then the mean over 2G and questions


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at each token, exp(d) - d - 1 with d = reference - policy (DeepSeekMath).

    On tokens that the policy did not draw itself (teacher rows) this is no estimate of a KL but still a penalty with its minimum
    at the reference. The exponent is kept from overflowing at 60; the value is never clamped.
    """
    gap = (reference - log_probs).clamp(max=60.0)
    return gap.exp() - gap - 1.0


def policy_loss(log_probs: Tensor, old: Tensor, policy: Policy) -> tuple[Tensor, dict[str, float]]:
    """The loss of a pack and what to log of it.

    log_probs [N]: with gradient; old [N]: the same tokens before the first of the inner updates. With one inner update old is
    `log_probs.detach()`: the ratio is exactly 1, clipping is idle, and the gradient is -A grad log p.
    """
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - policy.clip_epsilon, 1 + policy.clip_epsilon)
    gain = torch.minimum(ratio * policy.advantages, clipped * policy.advantages)
    kl = k3(log_probs, policy.reference)
    loss = (policy.kl_weight * kl - gain).sum() / policy.normaliser
    outside = (ratio.detach() - 1).abs() > policy.clip_epsilon
    return loss, {"ratio": float(ratio.detach().mean()), "clip_ratio": float(outside.float().mean())}

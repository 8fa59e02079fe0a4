"""The student's objective (Eq. 2) on the response tokens of a pack, as a loss to be made small: pure functions, one a
switch.

All of them are about N response tokens of a pack; `response` [N] says which row a token belongs to, rows counted from
0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.config.objective import Correction, Kl, Ratio
from stages.job import metric_names as names

FAR = 2.6  # nats: from here on other trainers' cap of k3 at 10 has no gradient left; its share is logged


@dataclass(frozen=True)
class LossInputs:
    """What Eq. 2 needs beside log-probabilities, for one pack."""

    advantages: Tensor  # [N] fp32: the advantage of each token's response
    reference: Tensor  # [N] fp32: log p of each token under the SFT student
    clip_low: float
    clip_high: float
    kl_weight: float
    normaliser: float  # rows of the step times max_tokens: Dr.GRPO's constant, then the mean over 2G and questions
    ratio: Ratio = "token"
    kl: Kl = "k3"
    response: Tensor | None = None  # [N] int64; needed for ratios of a whole sequence
    weights: Tensor | None = None  # [N]: 0 for rows outside the loss, 1 / length for a mean over each row
    gain_weights: Tensor | None = None  # [N]: corrections for the engine's numerics; the KL term has none
    luffy: Tensor | None = None  # [N] bool: tokens with LUFFY's ratio
    luffy_gamma: float = 0.1
    sft: Tensor | None = None  # [N] bool: tokens with cross entropy, weighted by `advantages`
    teacher_mask: Tensor | None = None  # [N] bool: teacher tokens, where their KL term differs
    teacher_kl: Kl | None = None  # their term; None for none
    full_kl: Tensor | None = None  # [N] with gradient, where `kl` or `teacher_kl` is "full"


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log p - log p_ref: unbiased for samples of the policy, of any sign; as a loss its expected gradient is zero."""
    return log_probs - reference


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Half the squared gap: biased, but its expected gradient is KL's; grows gently on tokens that the policy did not
    draw.
    """
    return 0.5 * (log_probs - reference).square()


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at each token, exp(d) - d - 1 with d = reference - policy (DeepSeekMath).

    On tokens that the policy did not draw itself (teacher rows) this is no estimate of a KL but still a penalty with
    its minimum at the reference. The exponent is kept from overflowing at 60; the value is never clamped.
    """
    gap = (reference - log_probs).clamp(max=60.0)
    return gap.exp() - gap - 1.0


_ESTIMATES = {"k1": k1, "k2": k2, "k3": k3}


def kl_term(log_probs: Tensor, inputs: LossInputs) -> Tensor:
    """The KL penalty at each token [N]: one estimate for all, or another on teacher rows."""

    def estimate(kind: Kl) -> Tensor:
        if kind == "full":
            assert inputs.full_kl is not None
            return inputs.full_kl
        return _ESTIMATES[kind](log_probs, inputs.reference)

    kl = estimate(inputs.kl)
    if inputs.teacher_mask is None:
        return kl
    there = torch.zeros_like(kl) if inputs.teacher_kl is None else estimate(inputs.teacher_kl)
    return torch.where(inputs.teacher_mask, there, kl)


def sum_by_response(values: Tensor, response: Tensor) -> Tensor:
    """Sum of the values [N] over each row [rows]."""
    rows = int(response.max()) + 1 if len(response) else 0
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, response, values)


def count_tokens(response: Tensor) -> Tensor:
    """Tokens of each row [rows] int64; at least 1, so that it can be divided by."""
    return torch.bincount(response).clamp(min=1)


def clip_gain(log_probs: Tensor, old: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """min(rho A, clip(rho) A) and rho, at each token [N].

    `token`: rho by token. `gspo` (arXiv 2507.18071, as verl and TRL have it): the geometric mean over the row, its
    gradient shared by all tokens. `sequence` (Eq. 2 to the letter): one term a row, spread over its tokens, so that
    sums over tokens stay what they are. At rho = 1 all three have the gradient A grad log p.
    """
    if inputs.ratio == "token":
        ratio = (log_probs - old).exp()
        return _clip(ratio, inputs.advantages, inputs), ratio
    assert inputs.response is not None
    lengths = count_tokens(inputs.response)
    gaps = sum_by_response(log_probs - old, inputs.response)
    if inputs.ratio == "gspo":
        mean = (gaps / lengths).detach()[inputs.response]
        ratio = (log_probs - log_probs.detach() + mean).exp()
        return _clip(ratio, inputs.advantages, inputs), ratio
    ratio = gaps.exp()[inputs.response]
    return _clip(ratio, inputs.advantages, inputs) / lengths[inputs.response], ratio


def _clip(ratio: Tensor, advantages: Tensor, inputs: LossInputs) -> Tensor:
    clipped = ratio.clamp(1 - inputs.clip_low, 1 + inputs.clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def luffy_gain(log_probs: Tensor, advantages: Tensor, gamma: float) -> Tensor:
    """A p / (p + gamma) at each token: LUFFY's shaped ratio for text of another writer (arXiv 2504.14945), never
    clipped.

    The writer's probability counts as 1. The shape gives unlikely tokens more gradient than p alone would.
    """
    probability = log_probs.exp()
    return probability / (probability + gamma) * advantages


def rollout_weights(
    trainer: Tensor, engine: Tensor, by_student: Tensor, response: Tensor, kind: Correction, cap: float
) -> Tensor:
    """Importance weights [N] for the gap between trainer and engine (truncated importance sampling), without gradient.

    trainer, engine [N]: log p of each token when it was sampled, as either computes it. `truncate_*` cuts the weight at
    `cap`, `mask_*` sets what is above it to 0; `*_sequence` has one weight a row, the product of its tokens'. Teacher
    rows were sampled from neither and have weight 1 (trap T15).
    """
    gap = torch.where(by_student, trainer - engine, torch.zeros_like(trainer)).detach()
    if kind.endswith("sequence"):
        gap = sum_by_response(gap, response)[response]
    weight = gap.exp()
    return (
        weight.clamp(max=cap) if kind.startswith("truncate") else torch.where(weight > cap, 0.0, weight)
    )  # cap is above 1


def policy_loss(log_probs: Tensor, old: Tensor, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a pack and what to log of each token: [N] without gradient, by name.

    log_probs [N]: with gradient; old [N]: the same tokens before the first of the inner updates. With one inner update
    old is `log_probs.detach()`: the ratio is exactly 1, clipping is idle, and the gradient is -A grad log p.
    """
    gain, ratio = clip_gain(log_probs, old, inputs)
    if inputs.luffy is not None:
        gain = torch.where(inputs.luffy, luffy_gain(log_probs, inputs.advantages, inputs.luffy_gamma), gain)
    if inputs.sft is not None:
        gain = torch.where(inputs.sft, log_probs * inputs.advantages, gain)
    if inputs.gain_weights is not None:
        gain = gain * inputs.gain_weights
    terms = inputs.kl_weight * kl_term(log_probs, inputs) - gain
    if inputs.weights is not None:
        terms = terms * inputs.weights
    seen = ratio.detach()
    return terms.sum() / inputs.normaliser, {
        names.RATIO: seen,
        names.CLIP_RATIO: ((seen < 1 - inputs.clip_low) | (seen > 1 + inputs.clip_high)).float(),
        names.KL_FAR: (inputs.reference - log_probs.detach() > FAR).float(),
    }

"""The policy loss (Eq. 2) on the response tokens of a pack: pure functions, one per switch.

N is the number of response tokens of a pack; `response` [N] maps each token to its row, counted from 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.config.objective import Correction, Kl, Ratio
from stages.job import metric_names as names

FAR = 2.6  # nats: beyond this gap, k3 capped at 10 (as in other trainers) has no gradient; the share is logged


@dataclass(frozen=True)
class LossInputs:
    """Inputs of Eq. 2 for one pack, except the log-probabilities."""

    advantages: Tensor  # [N] fp32: the advantage of each token's response
    reference: Tensor  # [N] fp32: log p of each token under the SFT student
    clip_low: float
    clip_high: float
    kl_weight: float
    normaliser: float  # rows of the step times max_tokens: Dr.GRPO's constant, then the mean over 2G and questions
    ratio: Ratio = "token"
    kl: Kl = "k3"
    response: Tensor | None = None  # [N] int64; required for sequence-level ratios
    weights: Tensor | None = None  # [N]: 0 for rows that are masked, 1 / length for a mean over each row
    gain_weights: Tensor | None = None  # [N]: importance weights for the engine's numerics; not applied to the KL term
    luffy: Tensor | None = None  # [N] bool: tokens with LUFFY's ratio
    luffy_gamma: float = 0.1
    sft: Tensor | None = None  # [N] bool: tokens with cross entropy, weighted by `advantages`
    teacher_mask: Tensor | None = None  # [N] bool: teacher tokens, if their KL term differs
    teacher_kl: Kl | None = None  # KL term of teacher tokens; None for no term
    full_kl: Tensor | None = None  # [N] with gradient, if `kl` or `teacher_kl` is "full"


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log p - log p_ref: unbiased on policy samples, may be negative; its expected gradient as a loss is zero."""
    return log_probs - reference


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Half the squared gap: biased, but with the expected gradient of KL; grows slowly on off-policy tokens."""
    return 0.5 * (log_probs - reference).square()


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at each token, exp(d) - d - 1 with d = reference - policy (DeepSeekMath).

    On off-policy tokens (teacher rows) this does not estimate a KL but is still a penalty with its minimum at the
    reference. The exponent is clamped at 60 to prevent overflow; the value is not clamped.
    """
    gap = (reference - log_probs).clamp(max=60.0)
    return gap.exp() - gap - 1.0


_ESTIMATES = {"k1": k1, "k2": k2, "k3": k3}


def kl_term(log_probs: Tensor, inputs: LossInputs) -> Tensor:
    """Returns the KL penalty [N] of each token; teacher rows may use a different estimator."""

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
    """Sums the values [N] over each row; returns [rows]."""
    rows = int(response.max()) + 1 if len(response) else 0
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, response, values)


def count_tokens(response: Tensor) -> Tensor:
    """Returns the tokens of each row [rows] int64; at least 1, so that it can be a divisor."""
    return torch.bincount(response).clamp(min=1)


def clip_gain(log_probs: Tensor, old: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns min(rho A, clip(rho) A) and rho, both [N].

    `token`: rho per token. `gspo` (arXiv 2507.18071, as in verl and TRL): geometric mean over the row, its gradient
    shared by all tokens. `sequence` (Eq. 2 as printed): one term per row, divided evenly over its tokens, so that sums
    over tokens are unchanged. At rho = 1 all three have the gradient A grad log p.
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
    """Returns A p / (p + gamma) [N]: LUFFY's shaped ratio for off-policy text (arXiv 2504.14945), never clipped.

    The probability under the behaviour policy is taken as 1. Shaping gives unlikely tokens more gradient than p alone.
    """
    probability = log_probs.exp()
    return probability / (probability + gamma) * advantages


def distillation_advantages(log_probs: Tensor, teachers: Tensor) -> Tensor:
    """Returns the advantage [N] of each token for distillation: -(log p - log p_teacher), the mean over teachers.

    log_probs [N]: of the student before the first inner update, without gradient; teachers [teachers, N]: of the same
    tokens. On tokens that the student sampled, its expectation is minus the mean of the reverse KL divergences
    KL(student || teacher), and the loss has their gradient (MiniLLM, arXiv 2306.08543, per token).
    """
    return (teachers - log_probs).mean(0)


def rollout_weights(
    trainer: Tensor, engine: Tensor, by_student: Tensor, response: Tensor, kind: Correction, cap: float
) -> Tensor:
    """Returns importance weights [N] without gradient for the mismatch of trainer and engine (truncated IS).

    trainer, engine [N]: log p of each token at sampling time, as computed by each. `truncate_*` clamps the weight at
    `cap` (above 1), `mask_*` sets larger weights to 0; `*_sequence` has one weight per row, the product over its
    tokens. Teacher rows are sampled from neither and have weight 1 (trap T15).
    """
    gap = torch.where(by_student, trainer - engine, torch.zeros_like(trainer)).detach()
    if kind.endswith("sequence"):
        gap = sum_by_response(gap, response)[response]
    weight = gap.exp()
    return weight.clamp(max=cap) if kind.startswith("truncate") else torch.where(weight > cap, 0.0, weight)


def policy_loss(log_probs: Tensor, old: Tensor, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the scalar loss of a pack and token-level metrics by name, each [N] without gradient.

    log_probs [N]: with gradient; old [N]: the same tokens before the first inner update. With one inner update, old is
    `log_probs.detach()`: the ratio is exactly 1, clipping has no effect, and the gradient is -A grad log p.
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

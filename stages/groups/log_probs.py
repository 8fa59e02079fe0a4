"""Log-probabilities, entropies and exact KL of response tokens from packs, without a [tokens, vocabulary] tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stages.groups import head
from stages.groups.attention import use_group_attention
from stages.groups.head import matmul_fp32, tiled_log_probs
from stages.groups.pack import Pack
from stages.vlm.reader import Network


def hidden_states(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """Returns the last hidden states [T, hidden] of a pack. `features` are precomputed image features."""
    if features is None and pack.pixels is not None:
        features = network.encode_images(pack.pixels)
    use_group_attention(network.text, network.group_attention)
    return network.compute_hidden(pack.ids, pack.positions, pack.mask, features)


def predicting_states(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """Returns the hidden states [N, hidden] that predict the response tokens, in the order of `pack.targets`."""
    return hidden_states(network, pack, features)[pack.predicts]


class _WideHead(torch.autograd.Function):
    """hidden @ weight.T of half-precision matrices, accumulated and returned in fp32.

    A bf16 result has a relative error of 2^-8 per logit, more than the KL term (trap T20). The gradients are rounded to
    the dtype of the inputs, as for any half-precision product.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(hidden, weight)
        return matmul_fp32(hidden, weight.T)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = context.saved_tensors
        narrow = gradients[0].to(hidden.dtype)
        return narrow @ weight, narrow.T @ hidden


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    wide = hidden.dtype in (torch.float32, torch.float64)
    logits = hidden @ weight.T if wide else _WideHead.apply(hidden, weight)  # type: ignore[no-untyped-call]
    return logits if temperature == 1.0 else logits / temperature  # type: ignore[operator,return-value]


def _full_kl(hidden: Tensor, weight: Tensor, reference: Tensor, reference_weight: Tensor, temperature: float) -> Tensor:
    ours = _logits(hidden, weight, temperature).log_softmax(1)
    theirs = _logits(reference, reference_weight, temperature).log_softmax(1)
    return (ours.exp() * (ours - theirs)).sum(1)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log p [N] of each target, fp32 (fp64 for fp64 inputs), without a [N, V] tensor.

    hidden [N, H], weight [V, H], targets [N] int64.
    """
    return tiled_log_probs(hidden, weight, targets, temperature)[0]


def token_entropies(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns log p [N] as `token_log_probs` and the entropy [N] in nats of each next-token distribution.

    Both are computed in one pass; the entropy has no gradient.
    """
    log_probs, entropies = tiled_log_probs(hidden, weight, targets, temperature, entropies=True)
    assert entropies is not None
    return log_probs, entropies


def token_full_kl(
    hidden: Tensor, weight: Tensor, reference: Tensor, reference_weight: Tensor, temperature: float = 1.0
) -> Tensor:
    """Returns KL(policy || reference) [N] in nats over the whole vocabulary, for hidden and reference [N, H].

    Exact, while k1, k2 and k3 are single-token estimates; costs a second head product. Computed in tiles of whole rows
    with as many logits as a tile of `token_log_probs`; the backward pass recomputes them.
    """
    rows = max(1, head.ROWS_PER_TILE * head.COLUMNS_PER_TILE // len(weight))
    if len(hidden) <= rows:
        return _full_kl(hidden, weight, reference, reference_weight, temperature)
    tiles = zip(torch.split(hidden, rows), torch.split(reference, rows), strict=True)
    return torch.cat(
        [checkpoint(_full_kl, a, weight, b, reference_weight, temperature, use_reentrant=False) for a, b in tiles]
    )


def response_log_probs(
    network: Network, pack: Pack, features: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Returns log p [N] fp32 of all response tokens of the pack, in the order of `pack.targets`."""
    return token_log_probs(predicting_states(network, pack, features), network.head.weight, pack.targets, temperature)

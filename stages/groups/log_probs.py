"""Log-probabilities of response tokens, and hidden states at the ends of responses, from packs."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stages.groups.attention import use_group_attention
from stages.groups.pack import Pack
from stages.vlm import Network

ROWS_PER_TILE = 4096  # logits of at most this many tokens exist at once


def hidden_states(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """Last hidden states [T, hidden] of a pack. `features` are its image features where they are known already."""
    if features is None and pack.pixels is not None:
        features = network.features(pack.pixels)
    use_group_attention(network.text)
    return network.hidden(pack.ids, pack.positions, pack.mask, features)


def _tile(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [N] fp32, from hidden [N, H] and head weight [V, H].

    Tile by tile, each recomputed in the backward pass, so that a [N, V] tensor never exists.
    """
    if len(hidden) <= ROWS_PER_TILE:
        return _tile(hidden, weight, targets)
    tiles = zip(torch.split(hidden, ROWS_PER_TILE), torch.split(targets, ROWS_PER_TILE), strict=True)
    return torch.cat([checkpoint(_tile, rows, weight, wanted, use_reentrant=False) for rows, wanted in tiles])  # type: ignore[misc]


def response_log_probs(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """log p [N] fp32 of every response token of the pack, in the order of `pack.targets`."""
    hidden = hidden_states(network, pack, features)
    return token_log_probs(hidden[pack.predicts], network.head.weight, pack.targets)

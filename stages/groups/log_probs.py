"""Log-probabilities of response tokens, and hidden states at the ends of responses, from packs."""

from torch import Tensor

from stages.groups.attention import use_group_attention
from stages.groups.head import tiled_log_probs
from stages.groups.pack import Pack
from stages.vlm import Network


def hidden_states(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """Last hidden states [T, hidden] of a pack. `features` are its image features where they are known already."""
    if features is None and pack.pixels is not None:
        features = network.features(pack.pixels)
    use_group_attention(network.text)
    return network.hidden(pack.ids, pack.positions, pack.mask, features)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [N] fp32, from hidden [N, H] and head weight [V, H]; a [N, V] tensor never exists."""
    return tiled_log_probs(hidden, weight, targets)[0]


def response_log_probs(network: Network, pack: Pack, features: Tensor | None = None) -> Tensor:
    """log p [N] fp32 of every response token of the pack, in the order of `pack.targets`."""
    hidden = hidden_states(network, pack, features)
    return token_log_probs(hidden[pack.predicts], network.head.weight, pack.targets)

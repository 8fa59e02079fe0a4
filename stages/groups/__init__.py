"""Groups, packs, attention masks, log-probabilities."""

from stages.groups.attention import GroupMask, use_group_attention
from stages.groups.log_probs import (
    hidden_states,
    predicting_states,
    response_log_probs,
    token_entropies,
    token_full_kl,
    token_log_probs,
)
from stages.groups.pack import Group, Pack, pack_of, packs, tree_mask

__all__ = [
    "Group",
    "GroupMask",
    "Pack",
    "hidden_states",
    "pack_of",
    "packs",
    "predicting_states",
    "response_log_probs",
    "token_entropies",
    "token_full_kl",
    "token_log_probs",
    "tree_mask",
    "use_group_attention",
]

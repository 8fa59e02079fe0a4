"""Attention in packs: each group attends only to itself, so a pack costs no more than the sum of its groups.

A [T, T] mask over the pack would make attention quadratic in the pack (28 % of a training step on CPU at packs of 512
tokens). transformers calls the function through its attention interface; no model is patched.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from stages.config.runtime import GroupAttention
from stages.groups.flex import flex_group_attention
from stages.groups.group_mask import GroupMask
from stages.groups.merged_attention import attend_merged, is_on_gpu, takes_merged

NAME = "ril_groups"
LONG_TOKENS = 1024  # of a group, from which on merged attention takes half the time on a CPU (8 answers of 512)


def group_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Computes attention [1, T, heads, width] from query [1, heads, T, width] and key, value [1, key heads, T, width].

    Called by transformers, which knows no mask of this kind: its own is None, and the call of the language model has
    `group_mask` among its `options`. Of these, `scaling` is used too, and `kind`, the setting. Raises KeyError when a
    layer did not hand `group_mask` on.
    """
    kind: GroupAttention = options.get("kind", "auto")
    group_mask: GroupMask = options["group_mask"]
    if kind == "auto":
        kind = choose_kind(query, group_mask)
    attend = {"sdpa": sdpa_by_group, "merged": attend_merged, "flex": flex_group_attention}[kind]
    out = attend(query, key, value, group_mask, options.get("scaling"))
    return out.transpose(1, 2).contiguous(), None


def choose_kind(query: Tensor, mask: GroupMask) -> GroupAttention:
    """Returns merged on a GPU, and on a CPU for a pack with a group longer than LONG_TOKENS; else sdpa.

    sdpa too where the kernel does not take the query.
    """
    gains = is_on_gpu(query) or any(span.stop - span.start > LONG_TOKENS for span in mask.spans)
    return "merged" if gains and takes_merged(query) else "sdpa"


def sdpa_by_group(query: Tensor, key: Tensor, value: Tensor, mask: GroupMask, scale: float | None) -> Tensor:
    """Returns attention [1, heads, T, width], computed for one group after the other with a mask [t, t]."""
    repeats = query.shape[1] // key.shape[1]
    parts = []
    # Not sliced: the gradient of each slice would be as long as the pack.
    lengths = [span.stop - span.start for span in mask.spans]
    own = zip(*(torch.split(one, lengths, dim=2) for one in (query, key, value)), strict=True)
    for (own_query, own_key, own_value), tree in zip(own, mask.get_masks(query.device), strict=True):
        grouped = repeats > 1
        if grouped and tree is not None and is_on_gpu(query):
            # No kernel but the one that holds all scores in fp32 takes both a mask and grouped keys.
            own_key, own_value = (one.repeat_interleave(repeats, 1) for one in (own_key, own_value))
            grouped = False
        parts.append(
            scaled_dot_product_attention(
                own_query,
                own_key,
                own_value,
                attn_mask=tree,
                is_causal=tree is None,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(parts, dim=2)


def use_group_attention(text_model: nn.Module, kind: GroupAttention) -> None:
    """Configures a transformers language model to attend with the GroupMask that its call has as `group_mask`."""
    name = f"{NAME}_{kind}"
    AttentionInterface.register(name, partial(group_attention, kind=kind))
    text_model.config._attn_implementation = name  # type: ignore[union-attr]

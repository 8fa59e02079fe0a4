"""Attention inside packs: every group attends to itself only, so that a pack of many groups costs no more than its
groups.

A pack's mask as one [T, T] tensor would make attention quadratic in the pack (28 % of a training step on CPU at packs
of 512 tokens). Here each group's part is computed by itself. transformers takes the function through its attention
interface; no model is patched.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "ril_groups"


@dataclass(frozen=True)
class GroupMask:
    """Which tokens see which: for each group its first token, the one after its last, and [t, t] bool (None:
    causal).
    """

    spans: tuple[tuple[int, int, Tensor | None], ...]

    def to(self, device: torch.device) -> "GroupMask":
        """The same on `device`."""
        return GroupMask(
            tuple((start, stop, None if mask is None else mask.to(device)) for start, stop, mask in self.spans)
        )


def group_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: GroupMask, **options: Any
) -> tuple[Tensor, None]:
    """Attention output [1, T, heads, width] from query [1, heads, T, width] and key, value [1, key heads, T, width].

    transformers calls it; of its `options` only `scaling` has a meaning here.
    """
    parts = [
        scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=mask,
            is_causal=mask is None,
            scale=options.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for start, stop, mask in attention_mask.spans
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def use_group_attention(text_model: nn.Module) -> None:
    """Makes a transformers language model take a GroupMask as its mask."""
    AttentionInterface.register(NAME, group_attention)
    text_model.config._attn_implementation = NAME  # type: ignore[union-attr]

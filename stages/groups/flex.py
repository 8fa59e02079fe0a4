"""Attention of packs by flex attention: one kernel over the pack that skips blocks which see nothing.

The kernel is compiled at first use; on a CPU it is not, and has no backward pass there.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from stages.groups.group_mask import GroupMask, GroupSpan


def flex_group_attention(query: Tensor, key: Tensor, value: Tensor, mask: GroupMask, scale: float | None) -> Tensor:
    """Returns attention [1, heads, T, width] of query [1, heads, T, width] and key, value [1, key heads, T, width]."""
    attend = _compile() if query.is_cuda else _load()
    blocks = _make_blocks(mask.spans, query.device)
    out: Tensor = attend(query, key, value, block_mask=blocks, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out


def _load() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compile() -> Any:
    return torch.compile(_load(), dynamic=True)  # packs differ in length


@functools.lru_cache(maxsize=1)  # the layers of a pass ask for the same mask
def _make_blocks(spans: tuple[GroupSpan, ...], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = spans[-1].stop
    group = torch.zeros(tokens, dtype=torch.int32)
    answer = torch.full((tokens,), -1, dtype=torch.int32)
    for number, span in enumerate(spans):
        group[span.start : span.stop] = number
        lengths = torch.tensor(span.responses, dtype=torch.long)
        answer[span.start + span.prompt : span.stop] = torch.repeat_interleave(lengths).int()
    group, answer = group.to(device), answer.to(device)

    def sees(batch: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        own = (answer[other] < 0) | (answer[other] == answer[place])
        return (group[place] == group[other]) & (place >= other) & own

    return create_block_mask(sees, None, None, tokens, tokens, device=str(device))

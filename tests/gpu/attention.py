"""Ways to attend inside a group of one shape, to be timed against `stages.groups.attention.group_attention`.

All take and give what it does. The loser stays here; a winner would move into stages/groups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stages.groups import attention
from stages.groups.attention import GroupMask

Attention = Callable[..., tuple[Tensor, None]]


def one_mask(mask: GroupMask, prompt: int, length: int) -> Attention:
    """One [T, T] mask over the whole pack, as transformers would have it."""
    whole = torch.zeros(mask.spans[-1][1], mask.spans[-1][1], dtype=torch.bool)
    for start, stop, part in mask.spans:
        size = stop - start
        whole[start:stop, start:stop] = torch.ones(size, size, dtype=torch.bool).tril() if part is None else part

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: GroupMask,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        out = scaled_dot_product_attention(query, key, value, attn_mask=whole, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    return attend


def split(mask: GroupMask, prompt: int, length: int) -> Attention:
    """The prompt causally by itself, then each answer over the prompt and itself: no work on what the mask hides."""
    rows = torch.arange(length)
    lower = torch.cat([torch.ones(length, prompt, dtype=torch.bool), rows[:, None] >= rows[None, :]], dim=1)

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: GroupMask,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        parts = []
        for start, stop, _part in attention_mask.spans:
            end = start + prompt
            q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
            parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True))
            answers = (stop - end) // length

            # all answers at once, as a batch over the same prompt
            def batched(tensor: Tensor, end: int = end, stop: int = stop, answers: int = answers) -> Tensor:
                heads, width = tensor.shape[1], tensor.shape[3]
                return tensor[0, :, end:stop].reshape(heads, answers, length, width).transpose(0, 1)

            k, v = (
                torch.cat([seen.expand(answers, -1, -1, -1), batched(whole)], 2)
                for seen, whole in ((k, key), (v, value))
            )
            out = scaled_dot_product_attention(batched(query), k, v, attn_mask=lower, scale=scaling, enable_gqa=True)
            parts.append(out.transpose(0, 1).reshape(1, query.shape[1], stop - end, query.shape[3]))
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    return attend


def flex(mask: GroupMask, prompt: int, length: int) -> Attention:
    """Flex attention with a block mask over the pack; compiled on a GPU. It has no backward pass on CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = mask.spans[-1][1]
    group, answer = torch.zeros(tokens, dtype=torch.int32), torch.full((tokens,), -1, dtype=torch.int32)
    for number, (start, stop, _) in enumerate(mask.spans):
        group[start:stop] = number
        answer[start + prompt : stop] = (torch.arange(stop - start - prompt) // length).int()

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (answer[key] < 0) | (answer[key] == answer[query])
        return (group[query] == group[key]) & (query >= key) & own

    device = group.device
    blocks = create_block_mask(visible, None, None, tokens, tokens, device=device.type)
    run: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: GroupMask,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        out = run(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
        return out.transpose(1, 2).contiguous(), None

    return attend


ALTERNATIVES: dict[str, Callable[[GroupMask, int, int], Attention]] = {
    "one mask": one_mask,
    "split": split,
    "flex": flex,
}
FORWARD_ONLY_ON_CPU = ("flex",)


@contextmanager
def using(other: Attention) -> Iterator[None]:
    """Packs attend by `other` inside the block."""
    own = attention.group_attention
    attention.group_attention = other  # looked up by use_group_attention at every pass
    yield
    attention.group_attention = own

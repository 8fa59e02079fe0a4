"""Ways to attend inside a group of one shape, to be timed against `stages.groups.attention.group_attention`.

All take and give what it does. The loser stays here; a winner would move into stages/groups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stages.config.runtime import GroupAttention
from stages.groups import attention
from stages.groups.group_mask import GroupMask

Attention = Callable[..., tuple[Tensor, None]]


def one_mask(mask: GroupMask, prompt: int, length: int) -> Attention:
    """One [T, T] mask over the whole pack, as transformers would have it."""
    whole = torch.zeros(mask.tokens, mask.tokens, dtype=torch.bool)
    for span, part in zip(mask.spans, mask.get_masks(whole.device), strict=True):
        size = span.stop - span.start
        seen = torch.ones(size, size, dtype=torch.bool).tril() if part is None else part
        whole[span.start : span.stop, span.start : span.stop] = seen

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
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
        attention_mask: None,
        scaling: float | None = None,
        *,
        group_mask: GroupMask,
        **_: Any,
    ) -> tuple[Tensor, None]:
        parts = []
        for start, stop in ((span.start, span.stop) for span in group_mask.spans):
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


def setting(kind: GroupAttention) -> Callable[[GroupMask, int, int], Attention]:
    """What `runtime.group_attention` selects by this name."""
    own = attention.group_attention

    def make(mask: GroupMask, prompt: int, length: int) -> Attention:
        def attend(*tensors: Any, **options: Any) -> tuple[Tensor, None]:
            return own(*tensors, **{**options, "kind": kind})

        return attend

    return make


ALTERNATIVES: dict[str, Callable[[GroupMask, int, int], Attention]] = {
    "one mask": one_mask,
    "split": split,
    "sdpa": setting("sdpa"),
    "merged": setting("merged"),
    "flex": setting("flex"),
}
FORWARD_ONLY_ON_CPU = ("flex",)


@contextmanager
def using(other: Attention) -> Iterator[None]:
    """Packs attend by `other` inside the block."""
    own = attention.group_attention
    attention.group_attention = other  # looked up by use_group_attention at every pass
    yield
    attention.group_attention = own

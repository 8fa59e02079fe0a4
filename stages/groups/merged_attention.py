"""Attention of packs with memory linear in their length: two passes of a flash kernel, merged by log-sum-exp.

Pass one: every prompt and every response sees itself, causally. Pass two: the responses of a group see its prompt. A
softmax over both is the mean of both results, weighted by their shares of the sum of exponentials. Backward, a kernel
that is given the merged result and the merged log-sum-exp computes its part of the gradient of the whole, since p =
exp(score - log-sum-exp) and the row sums of gradient times result are those of the whole row (FlashAttention, arXiv
2205.14135, Algorithm 4). Only queries, keys, values, the result and one number a token and head are kept.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from stages.groups.group_mask import GroupMask, GroupSpan, Segments, TreePlan, make_tree_mask

HALF = (torch.float16, torch.bfloat16)
ALLOWED = 0.02  # of a value or gradient around 1 in bf16, which rounds to 2^-8


def attend_merged(query: Tensor, key: Tensor, value: Tensor, mask: GroupMask, scale: float | None) -> Tensor:
    """Returns attention [1, heads, T, width] of query [1, heads, T, width] and key, value [1, key heads, T, width].

    Raises RuntimeError when the GPU's kernel does not give what the definition gives (checked once a process).
    """
    if is_on_gpu(query):
        check_kernel(query.device, query.dtype)
    return _merge(query, key, value, mask, scale)


def is_on_gpu(tensor: Tensor) -> bool:
    """Returns whether kernels of CUDA compute on this tensor."""
    return tensor.is_cuda


def takes_merged(query: Tensor) -> bool:
    """Returns whether the kernel of this device takes the query's precision and width; on a CPU always."""
    return not is_on_gpu(query) or (query.dtype in HALF and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256)


@functools.cache
def check_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Compares result and gradients on a small pack with the definition in fp32; raises RuntimeError if they differ."""
    generator = torch.Generator().manual_seed(0)
    span = GroupSpan(0, 150, (70, 1, 133))
    mask = make_tree_mask(span.prompt, span.responses, device)
    shapes = [(1, heads, span.stop, 64) for heads in (4, 2, 2, 4)]
    query, key, value, upstream = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    inputs = [one.requires_grad_() for one in (query, key, value)]
    with torch.enable_grad():
        ours = _merge(query, key, value, GroupMask((span,)), None)
        scores = query.float() @ key.float().repeat_interleave(2, 1).transpose(2, 3) / 8
        scores = scores.masked_fill(~mask, float("-inf"))  # type: ignore[operator]
        wanted = scores.softmax(-1) @ value.float().repeat_interleave(2, 1)
        found = [ours, *torch.autograd.grad(ours, inputs, upstream)]
        expected = [wanted, *torch.autograd.grad(wanted, inputs, upstream.float())]
    worst = max(float(((a - b).abs() / (1 + b.abs())).max().detach()) for a, b in zip(found, expected, strict=True))
    if not worst <= ALLOWED:  # nan too
        raise RuntimeError(
            f"runtime.group_attention: merged attention of {device} is off by {worst:.3g} of {ALLOWED}; set it to sdpa"
        )


def _merge(query: Tensor, key: Tensor, value: Tensor, mask: GroupMask, scale: float | None) -> Tensor:
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]  # [T, heads, width]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _Merged.apply(*rows, mask.get_plan(query.device), factor)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1).unsqueeze(0)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scale: float) -> Tensor:
        out, sums = _attend(query, key, value, plan.own, True, scale)
        if plan.shared is not None:
            answers, prompts = plan.answers, plan.prompts
            parts = query.index_select(0, answers), key.index_select(0, prompts), value.index_select(0, prompts)
            seen, seen_sums = _attend(*parts, plan.shared, False, scale)
            before = sums.index_select(1, answers)
            after = torch.logaddexp(before, seen_sums)
            own_share, seen_share = ((part - after).exp().T.unsqueeze(2) for part in (before, seen_sums))
            merged = own_share * out.index_select(0, answers) + seen_share * seen
            out.index_copy_(0, answers, merged.to(out.dtype))
            sums.index_copy_(1, answers, after)
        context.save_for_backward(query, key, value, out, sums)
        context.plan, context.scale = plan, scale
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = context.saved_tensors
        plan, scale = context.plan, context.scale
        upstream = gradients[0].contiguous()
        found = _attend_backward(upstream, (query, key, value, out, sums), plan.own, True, scale)
        if plan.shared is not None:
            answers, prompts = plan.answers, plan.prompts
            saved = (
                query.index_select(0, answers),
                key.index_select(0, prompts),
                value.index_select(0, prompts),
                out.index_select(0, answers),
                sums.index_select(1, answers),
            )
            added = _attend_backward(upstream.index_select(0, answers), saved, plan.shared, False, scale)
            for gradient, places, more in zip(found, (answers, prompts, prompts), added, strict=True):
                gradient.index_add_(0, places, more)
        return (*found, None, None)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the result [T, heads, width] and the log-sum-exp [heads, T] of each query."""
    if is_on_gpu(query):
        ends = segments.query_ends, segments.key_ends
        longest = max(segments.queries), max(segments.keys)
        done = torch.ops.aten._flash_attention_forward(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            *ends,
            *longest,
            0.0,
            causal,
            False,
            scale=scale,
        )
        return done[0], done[1]
    parts = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*piece, 0.0, causal, scale=scale)
        for piece in zip(*_split(query, (key, value), segments), strict=True)
    ]
    return (
        torch.cat([result[0].transpose(0, 1) for result, _ in parts]),
        torch.cat([sums[0] for _, sums in parts], dim=1),
    )


def _attend_backward(
    upstream: Tensor, saved: tuple[Tensor, ...], segments: Segments, causal: bool, scale: float
) -> list[Tensor]:
    """Returns the gradients of query, key, value; `saved` are these, and result and log-sum-exp of whole rows."""
    query, key, value, out, sums = saved
    if is_on_gpu(query):
        ends = segments.query_ends, segments.key_ends
        longest = max(segments.queries), max(segments.keys)
        # The states of dropout, which is off.
        unused = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
        tensors = [one.contiguous() for one in (upstream, query, key, value, out)]
        return list(
            torch.ops.aten._flash_attention_backward(*tensors, sums, *ends, *longest, 0.0, causal, *unused, scale=scale)
        )
    queries, keys, values = _split(query, (key, value), segments)
    upstreams, outs = (_split(tensor, (), segments)[0] for tensor in (upstream, out))
    by_piece = torch.split(sums[None], list(segments.queries), dim=2)
    parts: list[list[Tensor]] = [[], [], []]
    for piece in zip(upstreams, queries, keys, values, outs, by_piece, strict=True):
        done = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*piece, 0.0, causal, scale=scale)
        for part, gradient in zip(parts, done, strict=True):
            part.append(gradient[0].transpose(0, 1))
    found = [torch.cat(part) for part in parts]
    heads = key.shape[1]  # a key head serves several heads of the query, which are adjacent
    return [found[0], *(one.reshape(len(one), heads, -1, one.shape[2]).sum(2) for one in found[1:])]


def _split(query: Tensor, others: tuple[Tensor, ...], segments: Segments) -> list[list[Tensor]]:
    """Returns the pieces [1, heads, t, width] of each tensor, keys and values repeated for each head of the query."""
    heads = query.shape[1]
    wide = [one.repeat_interleave(heads // one.shape[1], 1) if one.shape[1] != heads else one for one in others]
    lengths = [segments.queries, *[segments.keys] * len(others)]
    return [
        [piece.transpose(0, 1)[None] for piece in torch.split(tensor, list(sizes))]
        for tensor, sizes in zip([query, *wide], lengths, strict=True)
    ]

"""Tiled vocabulary head: log p and entropy of the scored tokens, without storing a [tokens, vocabulary] tensor.

The forward pass folds tiles of logits into running log-sum-exps; the backward pass recomputes each tile, converts it to
the gradient in place and accumulates the products. With a vocabulary of 152k, full logits of 1,600 tokens take 0.97 GB
in fp32, and autograd holds three to four tensors of that size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROWS_PER_TILE = 4096
COLUMNS_PER_TILE = 32768  # 512 MiB of fp32 logits with ROWS_PER_TILE rows; small tiles are slow (SkyRL: 4.5 times)
ENTROPY_LOGITS = 2**20  # processed at a time: 4 MiB fit in a core's cache, and no second tile is allocated
KEPT_LOGITS = 2**25  # up to this many logits (128 MiB in fp32) in a single tile are kept for backward


def tiled_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, *, entropies: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Returns log p [N] of each target and, if `entropies`, the entropy [N] in nats of each distribution, else None.

    hidden [N, H], weight [V, H], targets [N] int64. The results are fp32 (fp64 for fp64 inputs). Products of
    half-precision matrices are accumulated in fp32 (trap T20); gradients have the dtype of their inputs. The entropy
    has no gradient.
    """
    log_probs, found = _Head.apply(hidden, weight, targets, temperature, entropies)  # type: ignore[no-untyped-call]
    return log_probs, found if entropies else None


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropies: bool
    ) -> tuple[Tensor, Tensor]:
        tiles = list(_iter_tiles(len(hidden), len(weight)))
        wide = torch.promote_types(hidden.dtype, torch.float32)
        chosen = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        total = torch.full_like(chosen, float("-inf"))  # log-sum-exp of the columns seen so far
        spread = torch.zeros_like(chosen)  # entropy of the softmax over these columns
        kept = None
        for rows, columns in tiles:
            logits = _logits(hidden[rows], weight[columns], temperature)
            inside = targets[rows] - columns.start
            here = (inside >= 0) & (inside < logits.shape[1])
            picked = logits.gather(1, inside.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
            chosen[rows] = torch.where(here, picked, chosen[rows])
            sums = logits.logsumexp(1)
            after = sums if columns.start == 0 else torch.logaddexp(total[rows], sums)
            if entropies:
                spread[rows] = _join_entropies(
                    spread[rows], total[rows], _tile_entropy(logits, sums), sums, after, columns.start == 0
                )
            total[rows] = after
            if len(tiles) == 1 and logits.numel() <= KEPT_LOGITS and (hidden.requires_grad or weight.requires_grad):
                kept = logits
        context.save_for_backward(hidden, weight, targets, total, kept)
        context.temperature = temperature
        context.mark_non_differentiable(spread)
        return chosen - total, spread

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, total, kept = context.saved_tensors
        upstream = gradients[0]
        for_hidden = torch.zeros_like(hidden, dtype=total.dtype) if context.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight, dtype=total.dtype) if context.needs_input_grad[1] else None
        for rows, columns in _iter_tiles(len(hidden), len(weight)):
            logits = _logits(hidden[rows], weight[columns], context.temperature) if kept is None else kept
            # d log p / d logit = 1[target] - p, times the upstream gradient
            slope = logits.sub_(total[rows, None]).exp_().mul_(-upstream[rows, None])
            inside = targets[rows] - columns.start
            here = (inside >= 0) & (inside < slope.shape[1])
            added = torch.where(here, upstream[rows], 0.0)
            slope.scatter_add_(1, inside.clamp(0, slope.shape[1] - 1)[:, None], added[:, None])
            if context.temperature != 1.0:
                slope /= context.temperature
            narrow = slope.to(hidden.dtype)
            if for_hidden is not None:
                for_hidden[rows] += matmul_fp32(narrow, weight[columns])
            if for_weight is not None:
                for_weight[columns] += matmul_fp32(narrow.T, hidden[rows])
        return (
            None if for_hidden is None else for_hidden.to(hidden.dtype),
            None if for_weight is None else for_weight.to(weight.dtype),
            None,
            None,
            None,
        )


def _tile_entropy(logits: Tensor, sums: Tensor) -> Tensor:
    """Entropy of the softmax over one tile, from log p: log-sum-exp - mean logit has errors of 2e-5 at logits of 20."""
    rows = max(1, ENTROPY_LOGITS // logits.shape[1])
    parts = zip(torch.split(logits, rows), torch.split(sums, rows), strict=True)
    return torch.cat([_entropy_of(part - total[:, None]) for part, total in parts])


def _entropy_of(log_p: Tensor) -> Tensor:
    return -log_p.exp().mul_(log_p).sum(1)


def _join_entropies(
    left: Tensor, left_sums: Tensor, right: Tensor, right_sums: Tensor, sums: Tensor, first: bool
) -> Tensor:
    """Entropy of the softmax over both parts: that of the two shares plus the entropies weighted by share."""
    if first:
        return right
    left_log, right_log = left_sums - sums, right_sums - sums
    return left_log.exp() * (left - left_log) + right_log.exp() * (right - right_log)


def _iter_tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, rows, ROWS_PER_TILE):
        for left in range(0, columns, COLUMNS_PER_TILE):
            yield slice(top, min(top + ROWS_PER_TILE, rows)), slice(left, min(left + COLUMNS_PER_TILE, columns))


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = matmul_fp32(hidden, weight.T)
    return logits if temperature == 1.0 else logits.div_(temperature)


def matmul_fp32(left: Tensor, right: Tensor) -> Tensor:
    """Returns left @ right; products of half-precision matrices are accumulated and returned in fp32 (trap T20)."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()

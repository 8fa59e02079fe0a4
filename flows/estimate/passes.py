"""Memory of forward and backward passes of one pack, in bf16.

The coefficients are bytes a token for each unit of width: what autograd keeps and what is alive at once, counted in
traces of transformers' layers with one, two and three layers (`tests/flows/estimate/test_passes.py` traces them again).
Attention is `merged` in the language model and `batched` in the tower, as on a GPU: both are linear in the pack.
"""

from dataclasses import dataclass

from flows.estimate.shapes import PATCH_VALUES, PATCHES_PER_TOKEN, TextShape, TowerShape

BF16, FP32 = 2, 4
# Tiles of the vocabulary head, those of stages/groups/head.py, which imports torch: a plan is there before torch is.
ROWS_PER_TILE, COLUMNS_PER_TILE = 4096, 32_768


@dataclass(frozen=True)
class PassMemory:
    """Bytes of the passes over one pack."""

    kept: int  # by autograd, from the forward pass until the backward pass
    working: int  # beside it, in the backward pass of the layer that needs most


def measure_text(text: TextShape, tokens: int, recompute: bool, rank: int = 0) -> PassMemory:
    """Returns the bytes of a language model's layers; `rank` of the adapters, 0 if its own weights are trained.

    Adapters are assumed beside all linear layers.
    """
    hidden, inner, keys = text.hidden, text.feed_forward, text.key_width
    # Queries wider than the states, as in Qwen3: they, their rotation and what attention returns.
    beyond = 6 * (text.query_width - hidden) + 4 * (text.query_width + keys) * text.key_norms
    layer = (16 if rank else 20) * hidden + 8 * inner + 4 * keys + FP32 * text.heads + beyond
    layer += 7 * BF16 * rank
    ends = (4 if rank else 6) * hidden  # embeddings, last norm
    if recompute:
        return PassMemory(
            tokens * (text.layers * BF16 * hidden + ends),
            tokens * ((14 if rank else 16) * hidden + 12 * inner + 4 * keys),
        )
    return PassMemory(tokens * (text.layers * layer + ends), tokens * 20 * hidden)


def measure_tower(tower: TowerShape, tokens: int, recompute: bool) -> PassMemory:
    """Returns the bytes of a trained vision tower for `tokens` image tokens. For InternViT it is an upper bound."""
    hidden, inner, patches = tower.hidden, tower.feed_forward, PATCHES_PER_TOKEN * tokens
    layer = BF16 * hidden if recompute else 26 * hidden + 8 * inner + FP32 * hidden // 16
    return PassMemory(
        patches * (tower.layers * layer + 12 * hidden + BF16 * 2 * PATCH_VALUES), patches * (23 * hidden + 10 * inner)
    )


def measure_frozen_tower(tower: TowerShape, tokens: int) -> int:
    """Returns the bytes at the peak of a forward pass without gradient for `tokens` image tokens."""
    return PATCHES_PER_TOKEN * tokens * (13 * tower.hidden + 8 * tower.feed_forward + BF16 * 2 * PATCH_VALUES)


def measure_head(text: TextShape, scored: int, trained: bool) -> int:
    """Returns the bytes of the vocabulary head in its backward pass over `scored` tokens.

    Tiles of fp32 logits, their exponentials and their bf16 copy; gradients of states and head in fp32, then in bf16.
    """
    tile = min(scored, ROWS_PER_TILE) * min(text.vocabulary, COLUMNS_PER_TILE)
    states = scored * text.hidden * (BF16 + FP32 + BF16)
    return tile * (FP32 + FP32 + BF16) + states + (text.head_weights * (FP32 + BF16) if trained else 0)

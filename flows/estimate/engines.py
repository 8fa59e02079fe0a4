"""Memory of a vLLM engine on each of its GPUs.

vLLM takes a share of the GPU's memory whatever it needs: weights, the peak of a pass over its largest batch, and the
rest for the KV cache (`determine_available_memory` of its GPU worker). An engine starts if that rest holds one answer
of the longest context.
"""

from dataclasses import dataclass

from flows.estimate.passes import BF16, FP32, measure_frozen_tower
from flows.estimate.shapes import ModelShape
from stages.config.engines import GpuUse
from stages.config.image_limits import SMALLEST_PIXELS, count_image_room
from stages.config.model import Model
from stages.config.placement import count_replica_gpus

BATCHED_TOKENS = 8192  # max_num_batched_tokens, vLLM's default for servers on large GPUs
LARGEST_IMAGE = 16_384  # tokens of an image at the released pixel bound of Qwen2.5-VL; InternVL's has at most 3,328
TILE = 256  # tokens of a tile of InternVL
ASLEEP = 1_500_000_000  # what a sleeping engine keeps: CUDA graphs, workspaces, its context. Assumed


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on each GPU of an engine, and what its cache holds."""

    weights: float
    work: float
    cache: float
    cached_tokens: int  # of one replica
    sequences: int  # that one replica answers at a time
    context: int
    token_bytes: float  # of the cache, on each GPU

    @property
    def total(self) -> float:
        """All that the engine takes of a GPU."""
        return self.weights + self.work + self.cache

    @property
    def answers(self) -> int:
        """Answers of the longest context that one replica holds at once; more if they are shorter."""
        return min(self.sequences, self.cached_tokens // self.context)


def count_largest_image(model: Model) -> int:
    """Returns the tokens of the largest image that a published processor makes with the limits of `model`."""
    if model.max_pixels is not None:
        return model.max_pixels // SMALLEST_PIXELS
    if model.max_tiles is not None:
        return TILE * (model.max_tiles + 1)
    return min(LARGEST_IMAGE, count_image_room(model.context_tokens))


def measure_engine(shape: ModelShape, use: GpuUse, share: float, card: float, model: Model) -> EngineMemory:
    """Returns the memory of an engine with `share` of a GPU of `card` bytes, for the context and images of `model`.

    The cache is negative if the weights don't fit the share.
    """
    text, parallel, context = shape.text, count_replica_gpus(use), model.context_tokens
    whole = 0 if shape.tower is None else shape.tower.count_undivided(text.hidden)
    weights = BF16 * (whole + (shape.weights - whole) / parallel)
    # A pass: two states, queries, keys, values and both halves of the feed-forward layer; logits of all sequences in
    # bf16, fp32 and sorted.
    split = use.tensor_parallel
    activations = BATCHED_TOKENS * BF16 * (4 * text.hidden + 3 * text.feed_forward / split)
    logits = use.sequences * text.vocabulary * (BF16 + 2 * FP32)
    # vLLM measures the tower with as many of the largest images as a batch holds, at least one.
    seen = max(BATCHED_TOKENS, count_largest_image(model))
    images = 0 if shape.tower is None else measure_frozen_tower(shape.tower, seen) / split
    work = activations + logits + images
    cache = share * card - weights - work
    layers = text.layers * split / parallel  # pipeline parallelism distributes layers
    token = 2 * BF16 * layers * text.key_width / min(split, text.key_heads)
    return EngineMemory(weights, work, cache, max(0, int(cache / token)), use.sequences, context, token)

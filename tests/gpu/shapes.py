"""Models of the released shapes with random weights, and one question of P tokens with 2G answers of R."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from flows.estimate.published import PUBLISHED
from stages.vlm.family import Pixels
from stages.vlm.reader import FAMILIES, Network, Prompt

FAMILY = FAMILIES["qwen2_5_vl"]
IMAGE_TOKEN = 7  # any id will do where weights are random
PATCH_VALUES = 3 * 2 * 14 * 14


@dataclass(frozen=True)
class Shape:
    """One model and one question."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool
    lora_rank: int = 0  # 0: all weights of the language model are trained
    vision: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, int] = (40, 25)  # image tokens down and across
    text_tokens: int = 100
    rows: int = 8
    length: int = 200

    @property
    def prompt_tokens(self) -> int:
        """P."""
        return self.image[0] * self.image[1] + self.text_tokens


def shape_of(published: str, layers: int | None = None, **other: Any) -> Shape:
    """The shape of a published Qwen2.5-VL; `layers` in place of its own number, `other` as in `Shape`."""
    model = PUBLISHED[published]
    text, tower = model.text, model.tower
    assert tower is not None
    sizes = (text.hidden, layers or text.layers, text.heads, text.key_heads, text.feed_forward, text.vocabulary)
    vision = {"depth": tower.layers, "hidden_size": tower.hidden, "intermediate_size": tower.feed_forward}
    return Shape(other.pop("name", published), *sizes, tied=text.tied, vision={**vision, "num_heads": 16}, **other)


SHAPES = (
    shape_of("Qwen/Qwen2.5-VL-3B-Instruct", name="3B LoRA", lora_rank=64),
    shape_of("Qwen/Qwen2.5-VL-7B-Instruct", name="7B LoRA", lora_rank=64),
    shape_of("Qwen/Qwen2.5-VL-3B-Instruct", name="3B whole"),
)
_TINY_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
_TINY: dict[str, Any] = {"vision": _TINY_VISION, "image": (6, 4), "text_tokens": 8, "length": 6}
TINY_SHAPES = (
    Shape("tiny LoRA", 64, 2, 4, 2, 128, 512, tied=False, lora_rank=4, **_TINY),
    Shape("tiny whole", 64, 2, 4, 2, 128, 512, tied=True, **_TINY),
)


def model_of(shape: Shape, dtype: torch.dtype) -> nn.Module:
    """A Qwen2.5-VL with random weights on the default device, in eval mode (there is no dropout)."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    half = shape.hidden // shape.heads // 2
    sections = [half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8]
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "intermediate_size": shape.feed_forward,
            "vocab_size": shape.vocabulary,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        },
        vision_config={
            **shape.vision,
            "out_hidden_size": shape.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [block for block in range(shape.vision["depth"]) if block % 8 == 7 or block == 1],
        },
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=shape.tied,
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 7B parameters are never made in fp32 first
    try:
        model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def network_of(model: nn.Module) -> Network:
    """The model as training sees it, its vision tower frozen as in `ril`."""
    network = Network(FAMILY, model, IMAGE_TOKEN)
    network.freeze_vision()
    return network


def prompt_of(shape: Shape, dtype: torch.dtype) -> Prompt:
    """P random tokens on the default device, an image among them."""
    down, across = shape.image
    tokens = down * across
    ordinary = torch.randint(IMAGE_TOKEN + 1, shape.vocabulary, (shape.text_tokens,))
    before = shape.text_tokens // 2
    ids = torch.cat([ordinary[:before], torch.full((tokens,), IMAGE_TOKEN), ordinary[before:]])
    grid = torch.tensor([[1, 2 * down, 2 * across]])
    pixels = Pixels(torch.randn(4 * tokens, PATCH_VALUES, dtype=dtype), grid, (4 * tokens,), (tokens,))
    # all that positions asks of a processor
    processor = SimpleNamespace(
        tokenizer=SimpleNamespace(convert_tokens_to_ids=lambda token: IMAGE_TOKEN),
        image_processor=SimpleNamespace(merge_size=2),
    )
    return Prompt(ids, FAMILY.compute_positions(processor, ids, pixels), pixels)


def answers_of(shape: Shape) -> list[tuple[int, ...]]:
    """2G answers of R random tokens."""
    drawn = torch.randint(IMAGE_TOKEN + 1, shape.vocabulary, (shape.rows, shape.length))
    return [tuple(row) for row in drawn.tolist()]

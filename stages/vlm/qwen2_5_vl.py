"""Qwen2.5-VL: images of any shape as rows of patches, three-axis positions (M-RoPE)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from stages.corpora.images import opened_image
from stages.job.blocks import Build
from stages.vlm.family import Pixels
from stages.vlm.qwen2_5 import INITIALIZER_RANGE, text_config
from stages.vlm.tokenizers import chat_template, train_tokenizer

name = "qwen2_5_vl"
vision_tokens: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
VOCABULARY = 512
PATCH, MERGE = 14, 2
TINY_PIXELS = (PATCH * MERGE) ** 2  # one image token
ROPE_THETA = 30.0  # the released 1e6 is made for long contexts: with 16 frequencies a head could not tell two image columns apart


def build(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny Qwen2.5-VL with random weights; its processor goes to `folder`."""
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>", default_system=True)
    tokenizer = train_tokenizer(texts, VOCABULARY, template)
    bounds = {"min_pixels": TINY_PIXELS, "max_pixels": 64 * TINY_PIXELS, "patch_size": PATCH, "merge_size": MERGE}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**bounds),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**bounds),
        chat_template=template,
    ).save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in vision_tokens}
    half = build.hidden_size // build.heads // 2
    sections = [half // 8, half // 4, half - half // 8 - half // 4]  # 1:2:5 gives width the higher frequencies it needs here
    text = text_config(build, len(tokenizer), tokenizer, context_tokens)
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": sections}},
        vision_config={
            "depth": build.vision_layers,
            "hidden_size": build.vision_hidden_size,
            "intermediate_size": 3 * build.vision_hidden_size,
            "num_heads": max(1, build.vision_hidden_size // 32),
            "out_hidden_size": build.hidden_size,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "initializer_range": INITIALIZER_RANGE,
            "fullatt_block_indexes": list(range(build.vision_layers)),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def processor(weights: Path) -> Any:
    """The processor."""
    return AutoProcessor.from_pretrained(weights)


def load(weights: Path, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def pixels(processor: Any, images: Sequence[bytes]) -> Pixels:
    """Rows of patches [patches, 3 * 2 * 14 * 14] and the grid of each image."""
    opened = [opened_image(image) for image in images]
    done = processor.image_processor(images=opened, return_tensors="pt")
    grids = done["image_grid_thw"]
    rows = grids.prod(-1)
    merged = rows // processor.image_processor.merge_size**2
    return Pixels(done["pixel_values"], grids, tuple(rows.tolist()), tuple(merged.tolist()))


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """As many as merged patches of the size that the processor makes of it."""
    own = processor.image_processor
    return tuple(own.get_number_of_image_patches(height, width) // own.merge_size**2 for width, height in sizes)


def image_token_id(processor: Any) -> int:
    """Id of <|image_pad|>."""
    return int(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def expanded(processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
    """`ids` with each <|image_pad|> repeated once for every token of its image."""
    pad, counts = image_token_id(processor), iter(pixels.tokens)
    return [token for given in ids for token in ([given] * next(counts) if given == pad else [given])]


def positions(processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
    """M-RoPE positions [3, tokens]: text counts on all axes at once; an image spans time, height and width.

    After an image text goes on at one more than the largest position of the image (a still image has time 0).
    """
    pad = image_token_id(processor)
    axes = torch.empty(3, len(ids), dtype=torch.long)
    token, position = 0, 0
    grids = iter(pixels.grids.tolist() if pixels is not None and pixels.grids is not None else [])
    while token < len(ids):
        if int(ids[token]) != pad:
            axes[:, token] = position
            token, position = token + 1, position + 1
            continue
        frames, height, width = next(grids)
        merge = processor.image_processor.merge_size
        shape = (frames, height // merge, width // merge)
        spans = torch.meshgrid(*(torch.arange(length) for length in shape), indexing="ij")
        count = shape[0] * shape[1] * shape[2]
        axes[:, token : token + count] = torch.stack(spans).reshape(3, count) + position
        token, position = token + count, position + max(shape)
    return axes


def features(model: nn.Module, pixels: Pixels) -> Tensor:
    """Merged patch features [image tokens, hidden]."""
    return torch.cat(model.model.get_image_features(pixels.values, pixels.grids).pooler_output)  # type: ignore[union-attr,operator]


def text_model(model: nn.Module) -> nn.Module:
    """The decoder without its head."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision_modules(model: nn.Module) -> list[nn.Module]:
    """The tower with its projector."""
    return [model.model.visual]  # type: ignore[union-attr,list-item]


def projection(model: nn.Module) -> nn.Linear:
    """The projector's last layer."""
    return model.model.visual.merger.mlp[-1]  # type: ignore[union-attr,index,return-value]

"""Qwen2.5-VL: images of any shape as rows of patches, three-axis positions (M-RoPE)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
)

from stages.config.image_limits import NO_LIMITS, ImageLimits
from stages.corpora.images import AnyImage, open_images
from stages.vlm.family import QWEN_VISION_TOKENS, Attention, Pixels, paint
from stages.vlm.weights import load_whole

name = "qwen2_5_vl"
attention: Attention = "packs"
model_types: tuple[str, ...] = ("qwen2_5_vl",)
text_types: tuple[str, ...] = ("qwen2_5_vl_text",)
vision_tokens: tuple[str, ...] = QWEN_VISION_TOKENS


def load_processor(weights: Path) -> Any:
    """Loads the processor."""
    return AutoProcessor.from_pretrained(weights, trust_remote_code=False, local_files_only=True)


def load_model(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the model in eval mode; raises BadWeights as `load_whole`."""
    return load_whole(Qwen2_5_VLForConditionalGeneration, weights, dtype)


def make_pixels(processor: Any, images: Sequence[AnyImage]) -> Pixels:
    """Returns patches [patches, 3 * 2 * 14 * 14] and the grid of each image."""
    opened = open_images(images)
    done = processor.image_processor(images=opened, return_tensors="pt")
    grids = done["image_grid_thw"]
    rows = grids.prod(-1)
    merged = rows // processor.image_processor.merge_size**2
    return Pixels(done["pixel_values"], grids, tuple(rows.tolist()), tuple(merged.tolist()))


def count_image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns the number of merged patches after resizing for each (width, height)."""
    own = processor.image_processor
    return tuple(own.get_number_of_image_patches(height, width) // own.merge_size**2 for width, height in sizes)


def read_image_limits(processor: Any) -> ImageLimits:
    """Returns the area in pixels between which images are scaled."""
    size = processor.image_processor.size
    return ImageLimits(min_pixels=int(size["shortest_edge"]), max_pixels=int(size["longest_edge"]))


def limit_images(processor: Any, limits: ImageLimits) -> None:
    """Changes the area between which images are scaled."""
    known = limits.fill(read_image_limits(processor))
    edges = {"shortest_edge": known.min_pixels, "longest_edge": known.max_pixels}
    processor.image_processor.size = replace(processor.image_processor.size, **edges)


def fit_images(processor: Any, tokens: int) -> ImageLimits:
    """Returns the area of `tokens` merged patches, if images may be larger than that."""
    own = processor.image_processor
    room = max(tokens * (own.patch_size * own.merge_size) ** 2, int(own.size["shortest_edge"]))
    return ImageLimits(max_pixels=room) if room < own.size["longest_edge"] else NO_LIMITS


def make_vllm_arguments(processor: Any) -> dict[str, Any]:
    """Returns the area between which images are scaled."""
    size = processor.image_processor.size
    return {"size": {name: size[name] for name in ("shortest_edge", "longest_edge")}}


def restore_pictures(processor: Any, pixels: Pixels) -> list[list[Image.Image]]:
    """Returns the resized picture of each image; its patches lie in blocks of merge_size x merge_size."""
    own = processor.image_processor
    merge, patch, frames = own.merge_size, own.patch_size, own.temporal_patch_size
    found, start = [], 0
    for grid, rows in zip(pixels.grids.tolist() if pixels.grids is not None else [], pixels.rows, strict=True):
        _, height, width = grid
        patches = pixels.values[start : start + rows]
        blocks = patches.reshape(height // merge, width // merge, merge, merge, -1, frames, patch, patch)
        lines = blocks[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6)  # a still image is the same in both frames
        found.append([paint(processor, lines.reshape(-1, height * patch, width * patch))])
        start += rows
    return found


def find_image_token_id(processor: Any) -> int:
    """Returns the id of <|image_pad|>."""
    return int(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def expand(processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
    """Returns `ids` with each <|image_pad|> repeated once per token of its image."""
    pad, counts = find_image_token_id(processor), iter(pixels.tokens)
    return [token for given in ids for token in ([given] * next(counts) if given == pad else [given])]


def compute_positions(processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
    """Returns M-RoPE positions [3, tokens] int64: text advances all axes; an image spans time, height and width.

    Text after an image starts at one more than the largest position of the image (a still image has time 0). Raises
    ValueError unless `ids` have as many image tokens as `pixels`.
    """
    pads = (ids == find_image_token_id(processor)).nonzero().flatten().tolist()
    counts = pixels.tokens if pixels is not None else ()
    if len(pads) != sum(counts):
        raise ValueError(f"{len(pads)} image tokens in the prompt, but {sum(counts)} of its images")
    axes = torch.arange(len(ids)).repeat(3, 1)
    grids = pixels.grids.tolist() if pixels is not None and pixels.grids is not None else []
    first = 0
    for (frames, height, width), count in zip(grids, counts, strict=True):
        start, stop = pads[first], pads[first] + count
        merge = processor.image_processor.merge_size
        shape = (frames, height // merge, width // merge)
        axes[:, stop:] -= count - max(shape)
        axes[:, start:stop] = axes[0, start] + torch.ones(shape).nonzero().T
        first += count
    return axes


def encode_images(model: nn.Module, pixels: Pixels) -> Tensor:
    """Returns merged patch features [image tokens, hidden]."""
    return torch.cat(model.model.get_image_features(pixels.values, pixels.grids).pooler_output)  # type: ignore[union-attr,operator]


def get_text_model(model: nn.Module) -> nn.Module:
    """Returns the decoder without its head."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def get_vision_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the vision tower, which includes its projector."""
    return [model.model.visual]  # type: ignore[union-attr,list-item]


def get_projection(model: nn.Module) -> nn.Linear:
    """Returns the last layer of the projector."""
    return model.model.visual.merger.mlp[-1]  # type: ignore[union-attr,index,return-value]

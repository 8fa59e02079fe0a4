"""InternVL3: images as square tiles, plain positions, a Qwen2 language model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    InternVLForConditionalGeneration,
)

from stages.config.image_limits import NO_LIMITS, ImageLimits
from stages.corpora.images import AnyImage, open_images
from stages.vlm.family import QWEN_VISION_TOKENS, Attention, Pixels, paint
from stages.vlm.weights import load_whole

name = "internvl3"
attention: Attention = "packs"
model_types: tuple[str, ...] = ("internvl",)
text_types: tuple[str, ...] = ("qwen2", "qwen3", "llama")
vision_tokens: tuple[str, ...] = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>", *QWEN_VISION_TOKENS)


def load_processor(weights: Path) -> Any:
    """Loads the processor."""
    return AutoProcessor.from_pretrained(weights, trust_remote_code=False, local_files_only=True)


def load_model(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the model in eval mode; raises BadWeights as `load_whole`."""
    return load_whole(InternVLForConditionalGeneration, weights, dtype)


def make_pixels(processor: Any, images: Sequence[AnyImage]) -> Pixels:
    """Returns tiles [tiles, 3, side, side]; the processor determines the number of tiles per image."""
    opened = open_images(images)
    crop = processor.image_processor.max_patches > 1
    done = processor.image_processor(images=opened, crop_to_patches=crop, return_tensors="pt")
    tiles = tuple(int(count) for count in done["num_patches"])
    return Pixels(done["pixel_values"], None, tiles, tuple(count * processor.image_seq_length for count in tiles))


def count_image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns tiles times tokens per tile for each (width, height)."""
    own = processor.image_processor
    crop = {"crop_to_patches": own.max_patches > 1}
    return tuple(
        own.get_number_of_image_patches(height, width, crop) * processor.image_seq_length for width, height in sizes
    )


def read_image_limits(processor: Any) -> ImageLimits:
    """Returns the fewest and most tiles of an image."""
    own = processor.image_processor
    return ImageLimits(min_tiles=int(own.min_patches), max_tiles=int(own.max_patches))


def limit_images(processor: Any, limits: ImageLimits) -> None:
    """Changes the fewest and most tiles of an image."""
    own, known = processor.image_processor, limits.fill(read_image_limits(processor))
    own.min_patches, own.max_patches = known.min_tiles, known.max_tiles
    own.crop_to_patches = own.max_patches > 1


def fit_images(processor: Any, tokens: int) -> ImageLimits:
    """Returns the most tiles that `tokens` hold, if an image may have more; several come with a thumbnail."""
    own = processor.image_processor
    tiles = max(1, own.min_patches, tokens // processor.image_seq_length - 1)
    return ImageLimits(max_tiles=int(tiles)) if tiles < own.max_patches else NO_LIMITS


def make_vllm_arguments(processor: Any) -> dict[str, Any]:
    """Returns the fewest and most tiles of an image."""
    own = processor.image_processor
    return {"min_patches": own.min_patches, "max_patches": own.max_patches, "crop_to_patches": own.max_patches > 1}


def restore_pictures(processor: Any, pixels: Pixels) -> list[list[Image.Image]]:
    """Returns the tiles of each image; the last of several is the whole image."""
    tiles = iter(pixels.values)
    return [[paint(processor, next(tiles)) for _ in range(count)] for count in pixels.rows]


def find_image_token_id(processor: Any) -> int:
    """Returns the id of <IMG_CONTEXT>."""
    return int(processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))


def expand(processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
    """Replaces each <IMG_CONTEXT> with <img>, one <IMG_CONTEXT> per token of its image, and </img>."""
    context, counts = find_image_token_id(processor), iter(pixels.tokens)
    first, last = (processor.tokenizer.convert_tokens_to_ids(token) for token in ("<img>", "</img>"))
    result: list[int] = []
    for given in ids:
        result += [first, *[context] * next(counts), last] if given == context else [given]
    return result


def compute_positions(processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
    """Returns 0, 1, 2, ... as [1, tokens] int64."""
    return torch.arange(len(ids))[None]


def encode_images(model: nn.Module, pixels: Pixels) -> Tensor:
    """Returns projected features [image tokens, hidden]."""
    config: Any = model.config
    found = model.model.get_image_features(  # type: ignore[union-attr,operator]
        pixels.values,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    return found.pooler_output.flatten(0, 1)  # type: ignore[no-any-return]


def get_text_model(model: nn.Module) -> nn.Module:
    """Returns the decoder without its head."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def get_vision_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the vision tower and its projector."""
    return [model.model.vision_tower, model.model.multi_modal_projector]  # type: ignore[union-attr,list-item]


def get_projection(model: nn.Module) -> nn.Linear:
    """Returns the last layer of the projector."""
    return model.model.multi_modal_projector.linear_2  # type: ignore[union-attr,index,return-value]

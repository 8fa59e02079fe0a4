"""Any chat model of transformers that reads text only, with its own chat template: the judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.config.image_limits import NO_LIMITS, ImageLimits
from stages.corpora.images import AnyImage
from stages.vlm.family import QWEN_VISION_TOKENS, Attention, Pixels
from stages.vlm.weights import load_whole

name = "text"
attention: Attention = "any"  # its models are asked by vLLM, and no stage trains one
model_types: tuple[str, ...] = ()
text_types: tuple[str, ...] = ()
vision_tokens: tuple[str, ...] = QWEN_VISION_TOKENS


def load_processor(weights: Path) -> Any:
    """Loads the tokenizer."""
    return AutoTokenizer.from_pretrained(weights, trust_remote_code=False, local_files_only=True)


def load_model(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the model in eval mode; raises BadWeights as `load_whole`."""
    return load_whole(AutoModelForCausalLM, weights, dtype)


def make_pixels(processor: Any, images: Sequence[AnyImage]) -> Pixels:
    """Raises ValueError: a text model sees no images."""
    raise ValueError(f"a prompt for a text model has {len(images)} images")


def count_image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Raises ValueError: a text model sees no images."""
    raise ValueError(f"a prompt for a text model has {len(sizes)} images")


def read_image_limits(processor: Any) -> ImageLimits:
    """Returns no limits: a text model sees no images."""
    return NO_LIMITS


def limit_images(processor: Any, limits: ImageLimits) -> None:
    """Raises ValueError for any limit: a text model sees no images."""
    if limits.list_set():
        raise ValueError(f"a text model has no limits on images: {limits}")


def fit_images(processor: Any, tokens: int) -> ImageLimits:
    """Returns no limits: a text model sees no images."""
    return NO_LIMITS


def make_vllm_arguments(processor: Any) -> dict[str, Any]:
    """Returns no arguments: a text model sees no images."""
    return {}


def restore_pictures(processor: Any, pixels: Pixels) -> list[list[Image.Image]]:
    """Raises ValueError: a text model sees no images."""
    raise ValueError(f"pixels of {len(pixels.rows)} images for a text model")


def expand(processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
    """Returns `ids` unchanged."""
    return list(ids)


def find_image_token_id(processor: Any) -> int:
    """Returns -1: text models have no image token."""
    return -1


def compute_positions(processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
    """Returns 0, 1, 2, ... as [1, tokens] int64."""
    return torch.arange(len(ids))[None]


def encode_images(model: nn.Module, pixels: Pixels) -> Tensor:
    """Raises ValueError: a text model sees no images."""
    raise ValueError("a text model has no image features")


def get_text_model(model: nn.Module) -> nn.Module:
    """Returns the decoder without its head."""
    return model.model  # type: ignore[return-value]


def get_vision_modules(model: nn.Module) -> list[nn.Module]:
    """Returns an empty list: text models have no vision modules."""
    return []


def get_projection(model: nn.Module) -> nn.Linear:
    """Raises ValueError: a text model has no projector."""
    raise ValueError("a text model has no vision projector")

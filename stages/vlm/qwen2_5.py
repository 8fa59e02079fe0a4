"""Qwen2.5: the family `text` by its first name, under which judges have stored their answers."""

from stages.vlm.family import QWEN_VISION_TOKENS, Attention
from stages.vlm.text import (
    compute_positions,
    count_image_tokens,
    encode_images,
    expand,
    find_image_token_id,
    fit_images,
    get_projection,
    get_text_model,
    get_vision_modules,
    limit_images,
    load_model,
    load_processor,
    make_pixels,
    make_vllm_arguments,
    read_image_limits,
    restore_pictures,
)

__all__ = [
    "attention",
    "compute_positions",
    "count_image_tokens",
    "encode_images",
    "expand",
    "find_image_token_id",
    "fit_images",
    "get_projection",
    "get_text_model",
    "get_vision_modules",
    "limit_images",
    "load_model",
    "load_processor",
    "make_pixels",
    "make_vllm_arguments",
    "model_types",
    "name",
    "read_image_limits",
    "restore_pictures",
    "text_types",
    "vision_tokens",
]

name = "qwen2_5"
attention: Attention = "any"
model_types: tuple[str, ...] = ()
text_types: tuple[str, ...] = ()
vision_tokens: tuple[str, ...] = QWEN_VISION_TOKENS

"""Qwen3-VL: images as in Qwen2.5-VL, whose features also reach the layers behind the first ones (DeepStack).

Its vision tower gives each image token one feature for its embedding and one more for each of the first layers of the
language model (arXiv 2406.04334). Here they stand side by side in one row, so that packs, caches of features and frozen
towers treat them as they treat all features.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from stages.vlm import qwen2_5_vl
from stages.vlm.family import QWEN_VISION_TOKENS, Attention, Pixels
from stages.vlm.weights import load_whole

name = "qwen3_vl"
attention: Attention = "packs"
model_types: tuple[str, ...] = ("qwen3_vl",)
text_types: tuple[str, ...] = ("qwen3_vl_text",)
vision_tokens: tuple[str, ...] = QWEN_VISION_TOKENS

# Its processor has the image processor of Qwen2.5-VL, with larger patches (16 pixels) and other limits. Positions are
# the same; the language model spreads their axes over its frequencies in another way by itself.
load_processor = qwen2_5_vl.load_processor
make_pixels = qwen2_5_vl.make_pixels
count_image_tokens = qwen2_5_vl.count_image_tokens
read_image_limits = qwen2_5_vl.read_image_limits
limit_images = qwen2_5_vl.limit_images
fit_images = qwen2_5_vl.fit_images
make_vllm_arguments = qwen2_5_vl.make_vllm_arguments
restore_pictures = qwen2_5_vl.restore_pictures
find_image_token_id = qwen2_5_vl.find_image_token_id
expand = qwen2_5_vl.expand
compute_positions = qwen2_5_vl.compute_positions
get_text_model = qwen2_5_vl.get_text_model
get_vision_modules = qwen2_5_vl.get_vision_modules


def load_model(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the model in eval mode; raises BadWeights as `load_whole`."""
    return load_whole(Qwen3VLForConditionalGeneration, weights, dtype)


def encode_images(model: nn.Module, pixels: Pixels) -> Tensor:
    """Returns features [image tokens, (1 + levels) * hidden]: of the embedding, then of the first layer, the second."""
    found = model.model.get_image_features(pixels.values, pixels.grids)  # type: ignore[union-attr,operator]
    levels = [found.pooler_output, *found.deepstack_features]  # of each level, one tensor an image
    return torch.cat([torch.cat(images) for images in levels], dim=1)


def get_projection(model: nn.Module) -> nn.Linear:
    """Returns the last layer of the projector whose features replace embeddings."""
    return model.model.visual.merger.linear_fc2  # type: ignore[union-attr,return-value]

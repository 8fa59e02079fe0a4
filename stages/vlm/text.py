"""Text models of the kinds that follow Llama: judges. Each has its own tokenizer and chat template."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from stages.vlm import qwen2_5
from stages.vlm.family import QWEN_VISION_TOKENS
from stages.vlm.weights import load_whole

name = "text"
model_types: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
text_types: tuple[str, ...] = ()
vision_tokens: tuple[str, ...] = QWEN_VISION_TOKENS  # Qwen3's tokenizer has them; others have none

load_processor = qwen2_5.load_processor
make_pixels = qwen2_5.make_pixels
count_image_tokens = qwen2_5.count_image_tokens
read_image_limits = qwen2_5.read_image_limits
limit_images = qwen2_5.limit_images
fit_images = qwen2_5.fit_images
make_vllm_arguments = qwen2_5.make_vllm_arguments
restore_pictures = qwen2_5.restore_pictures
expand = qwen2_5.expand
find_image_token_id = qwen2_5.find_image_token_id
compute_positions = qwen2_5.compute_positions
encode_images = qwen2_5.encode_images
get_text_model = qwen2_5.get_text_model
get_vision_modules = qwen2_5.get_vision_modules
get_projection = qwen2_5.get_projection


def load_model(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the model in eval mode; raises BadWeights as `load_whole`."""
    return load_whole(AutoModelForCausalLM, weights, dtype)

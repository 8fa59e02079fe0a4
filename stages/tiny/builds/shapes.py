"""Shapes of the tiny models, one function a family: real architectures with random weights, tokenizers trained here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from stages.config.build import Build
from stages.tiny.builds.copying import initialise_look_back
from stages.tiny.builds.tokenizers import make_chat_template, train_tokenizer
from stages.vlm import qwen2_5_vl, qwen3_vl
from stages.vlm.reader import FAMILIES, Network, Reader

PATCH, MERGE = 14, 2
QWEN_VL_VOCABULARY = 512
TINY_PIXELS = (PATCH * MERGE) ** 2  # one image token
# the released 1e6 is made for long contexts: with 16 frequencies a head could not tell two image columns apart
ROPE_THETA = 30.0
QWEN3_PATCH = 16
QWEN3_PIXELS = (QWEN3_PATCH * MERGE) ** 2  # one image token
QWEN3_GRID = 8  # learned positions in a row; resampled to the patches of an image
DEEPSTACK_LEVELS = 3  # as published, if there are so many layers
INTERNVL_VOCABULARY = 640
TINY_SIDE = 84  # tiles of 6 x 6 patches, 3 x 3 image tokens after pixel shuffle
INTERNVL_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEXT_VOCABULARY = 1024  # 512 spells out every word of prose that the judge has to read
INITIALIZER_RANGE = 0.06  # the usual 0.02 is meant for widths in the thousands; at 128 it learns several times slower


def build_tiny(
    family_name: str, build: Build, texts: Sequence[str], context_tokens: int, seed: int, folder: Path
) -> tuple[Reader, Network]:
    """A tiny model with random weights drawn from `seed`; its processor is saved into `folder`, its weights are not."""
    family = FAMILIES[family_name]
    torch.manual_seed(seed)
    model = _BUILDERS[family_name](build, texts, context_tokens, folder)
    reader = Reader(family, family.load_processor(folder))
    model.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    return reader, Network(family, model.eval(), reader.image_token_id)


def build_qwen2_5_vl(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny Qwen2.5-VL with random weights; its processor goes to `folder`."""
    template = make_chat_template("<|vision_start|><|image_pad|><|vision_end|>", default_system=True)
    tokenizer = train_tokenizer(texts, QWEN_VL_VOCABULARY, template)
    bounds = {"min_pixels": TINY_PIXELS, "max_pixels": 64 * TINY_PIXELS, "patch_size": PATCH, "merge_size": MERGE}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**bounds),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**bounds),
        chat_template=template,
    ).save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in qwen2_5_vl.vision_tokens}
    half = build.hidden_size // build.heads // 2
    sections = [
        half // 8,
        half // 4,
        half - half // 8 - half // 4,
    ]  # 1:2:5 gives width the higher frequencies it needs here
    text = make_text_config(build, len(tokenizer), tokenizer, context_tokens)
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": sections},
        },
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


def build_qwen3_vl(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny Qwen3-VL with random weights; its processor goes to `folder`."""
    template = make_chat_template("<|vision_start|><|image_pad|><|vision_end|>", default_system=False)
    tokenizer = train_tokenizer(texts, QWEN_VL_VOCABULARY, template)
    size = {"shortest_edge": QWEN3_PIXELS, "longest_edge": 64 * QWEN3_PIXELS}
    images = {"size": size, "patch_size": QWEN3_PATCH, "merge_size": MERGE}
    grey = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**images, **grey),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**images),
        chat_template=template,
    ).save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in qwen3_vl.vision_tokens}
    width = build.hidden_size // build.heads
    third = width // 6  # of the frequencies of a head; time gets what is left
    rope = {"mrope_section": [width // 2 - 2 * third, third, third], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            **make_text_config(build, len(tokenizer), tokenizer, context_tokens),
            "head_dim": width,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, **rope},
        },
        vision_config={
            "depth": build.vision_layers,
            "hidden_size": build.vision_hidden_size,
            "intermediate_size": 3 * build.vision_hidden_size,
            "num_heads": max(1, build.vision_hidden_size // 32),
            "out_hidden_size": build.hidden_size,
            "patch_size": QWEN3_PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": QWEN3_GRID**2,
            "deepstack_visual_indexes": list(range(min(DEEPSTACK_LEVELS, build.layers, build.vision_layers))),
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return Qwen3VLForConditionalGeneration(config)


def build_internvl3(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny InternVL3 with random weights; its processor goes to `folder`."""
    template = make_chat_template("<IMG_CONTEXT>\n", default_system=False)
    tokenizer = train_tokenizer(texts, INTERNVL_VOCABULARY, template, **INTERNVL_NAMED)
    side = {"height": TINY_SIDE, "width": TINY_SIDE}
    tokens = (TINY_SIDE // PATCH // 2) ** 2
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=False, min_patches=1, max_patches=1),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=tokens,
        chat_template=template,
    ).save_pretrained(folder)
    text = make_text_config(build, len(tokenizer), tokenizer, context_tokens)
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={
            "hidden_size": build.vision_hidden_size,
            "num_hidden_layers": build.vision_layers,
            "num_attention_heads": max(1, build.vision_hidden_size // 32),
            "intermediate_size": 3 * build.vision_hidden_size,
            "image_size": [TINY_SIDE, TINY_SIDE],
            "patch_size": [PATCH, PATCH],
            "initializer_range": INITIALIZER_RANGE,
            "layer_scale_init_value": 1.0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def build_qwen2_5(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny Qwen2.5 with random weights; its tokenizer goes to `folder`."""
    tokenizer = train_tokenizer(texts, TEXT_VOCABULARY, make_chat_template("", default_system=True))
    tokenizer.save_pretrained(folder)
    config = make_text_config(build, len(tokenizer), tokenizer, context_tokens)
    # a judge copies and compares: every head looks for itself
    model = Qwen2ForCausalLM(Qwen2Config(**config | {"num_key_value_heads": build.heads}))
    initialise_look_back(model.model)
    return model


def make_text_config(build: Build, vocabulary: int, tokenizer: Any, context_tokens: int) -> dict[str, Any]:
    """Shape of a tiny Qwen2 language model: 2 x wide feed-forward, untied head.

    An untied head, because vLLM on CPU keeps the old weights of a tied one when weights are reloaded from files.
    """
    return {
        "vocab_size": vocabulary,
        "hidden_size": build.hidden_size,
        "intermediate_size": 2 * build.hidden_size,
        "num_hidden_layers": build.layers,
        "num_attention_heads": build.heads,
        "num_key_value_heads": build.key_heads,
        "max_position_embeddings": context_tokens,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


_BUILDERS: dict[str, Callable[[Build, Sequence[str], int, Path], nn.Module]] = {
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "internvl3": build_internvl3,
    "text": build_qwen2_5,
    "qwen2_5": build_qwen2_5,
}

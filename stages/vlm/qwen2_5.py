"""Qwen2.5, a text model: the judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from stages.job.blocks import Build
from stages.vlm.family import Pixels
from stages.vlm.tokenizers import chat_template, train_tokenizer

name = "qwen2_5"
vision_tokens: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
VOCABULARY = 1024  # 512 spells out every word of prose that the judge has to read
LOOK_BACK_PAIRS, LOOK_BACK_LENGTH = 4, 5.0  # the fastest turning pairs of a head; 3 nats between a place and its neighbours
INITIALIZER_RANGE = 0.06  # the usual 0.02 is meant for widths in the thousands; at 128 it learns several times slower


def build(build: Build, texts: Sequence[str], context_tokens: int, folder: Path) -> nn.Module:
    """A tiny Qwen2.5 with random weights; its tokenizer goes to `folder`."""
    tokenizer = train_tokenizer(texts, VOCABULARY, chat_template("", default_system=True))
    tokenizer.save_pretrained(folder)
    config = text_config(build, len(tokenizer), tokenizer, context_tokens)
    # a judge copies and compares: every head looks for itself
    model = Qwen2ForCausalLM(Qwen2Config(**config | {"num_key_value_heads": build.heads}))
    look_back(model, build.heads)
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, heads: int) -> None:
    """Lets all heads of the first layer but one start by looking at the token 1, 2, 3 ... places back, as copying needs it.

    In rotary positions biases alone can do that: the key's are the query's turned by so many places. Weights drawn at random
    find it late, since biases start at 0 and each one's gradient is the other.
    """
    attention = model.model.layers[0].self_attn
    width = attention.head_dim
    angles = model.model.rotary_emb.inv_freq[:LOOK_BACK_PAIRS]
    query, key = (layer.bias.view(heads, 2, width // 2) for layer in (attention.q_proj, attention.k_proj))
    for head in range(heads - 1):
        back = head + 1
        query[head, 0, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH
        key[head, 0, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH * torch.cos(angles * back)
        key[head, 1, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH * torch.sin(angles * back)


def text_config(build: Build, vocabulary: int, tokenizer: Any, context_tokens: int) -> dict[str, Any]:
    """Shape of a tiny Qwen2 language model: 2 x wide feed-forward, half as many key-value heads, untied head.

    An untied head, because vLLM on CPU keeps the old weights of a tied one when weights are reloaded from files.
    """
    return {
        "vocab_size": vocabulary,
        "hidden_size": build.hidden_size,
        "intermediate_size": 2 * build.hidden_size,
        "num_hidden_layers": build.layers,
        "num_attention_heads": build.heads,
        "num_key_value_heads": max(1, build.heads // 2),
        "max_position_embeddings": context_tokens,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def processor(weights: Path) -> Any:
    """The tokenizer."""
    return AutoTokenizer.from_pretrained(weights)


def load(weights: Path, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode."""
    return Qwen2ForCausalLM.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa").eval()


def pixels(processor: Any, images: Sequence[bytes]) -> Pixels:
    """Raises ValueError: a text model sees no images."""
    raise ValueError(f"a prompt for a text model has {len(images)} images")


def expanded(processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
    """The same ids."""
    return list(ids)


def image_token_id(processor: Any) -> int:
    """-1: there is none."""
    return -1


def positions(processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
    """0, 1, 2, ... as [1, tokens]."""
    return torch.arange(len(ids))[None]


def features(model: nn.Module, pixels: Pixels) -> Tensor:
    """Raises ValueError: a text model sees no images."""
    raise ValueError("a text model has no image features")


def text_model(model: nn.Module) -> nn.Module:
    """The decoder without its head."""
    return model.model  # type: ignore[return-value]


def vision_modules(model: nn.Module) -> list[nn.Module]:
    """None."""
    return []


def projection(model: nn.Module) -> nn.Linear:
    """Raises ValueError: a text model has no projector."""
    raise ValueError("a text model has no vision projector")

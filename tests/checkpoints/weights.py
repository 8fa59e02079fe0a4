"""Weights of the made checkpoints: drawn from a seed, and such that sampled answers are short words and end.

The first coordinate of all hidden states is that of the embeddings: no layer writes it. The head reads from it which
tokens are likely at all, and from the other coordinates, which layers write, which of these comes next. So answers
depend on prompt and image, as a wrong mask or position would show, and still end.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# Words that answers are made of: each is one token of Qwen2.5's tokenizer, after a space another one.
WORDS = (
    "yes", "no", "red", "blue", "green", "one", "two", "three", "four", "left", "right", "top", "circle", "square",
    "the", "is", "a", "and", "of", "answer", "so", "because", "image", "shows", "in", "on",
)  # fmt: skip
SIGNS = (".", ",", ":", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
LIKELY, END = 12.5, 2.8  # added to logits: e^12.5 is more than the rows of a vocabulary
FIRST, SPREAD, QUIET = 2.0, 0.12, 0.02  # small, so that logits stay below 64: bf16 has steps of 0.25 there


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draws matrices with a standard deviation of 1 / sqrt(inputs); norms and all other vectors are left as they are.

    The embeddings' first coordinate is FIRST; `favour_tokens` changes those of a few.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        inputs = parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(inputs))
        if name.endswith(("o_proj.weight", "down_proj.weight")) and "vis" not in name:
            parameter.mul_(0.4)
            parameter[0].zero_()
    embedding, head = _get_ends(model)
    embedding.copy_(torch.randn(embedding.shape, generator=generator) * 0.1)
    if head is not embedding:
        head.copy_(torch.randn(head.shape, generator=generator) * QUIET)
    embedding[:, 0] = FIRST


@torch.no_grad()
def draw_tower(model: nn.Module, seed: int) -> None:
    """Draws the matrices of an InternVL's tower and projector as `draw_weights` does, and no others."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and ("vision_tower" in name or "multi_modal_projector" in name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()))


@torch.no_grad()
def favour_tokens(model: nn.Module, ids: Sequence[int], end: int, seed: int) -> None:
    """Makes `ids` and the end of a turn the tokens that answers consist of, the end the likeliest of them."""
    generator = torch.Generator().manual_seed(seed)
    embedding, head = _get_ends(model)
    wanted = [*ids, end]
    head[wanted] = torch.randn(len(wanted), head.shape[1], generator=generator).to(head.dtype) * SPREAD
    head[wanted, 0] = LIKELY / _measure_first(model, [0, 1, 2, 3])
    if head is embedding:
        head[wanted, 0] += FIRST  # what all rows have
    head[end, 0] += END / _measure_first(model, ids[:4])


def _measure_first(model: Any, ids: Sequence[int]) -> float:
    """Returns the first coordinate of the last hidden state behind `ids`, as the head reads it."""
    return float(model.model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0, -1, 0])


def _get_ends(model: Any) -> tuple[Tensor, Tensor]:
    """Returns embeddings and head, one tensor if they are tied."""
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes two safetensors files of about equal size, and their index."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    files: list[dict[str, Tensor]] = [{}, {}]
    written = 0
    for name in sorted(tensors, key=lambda name: (tensors[name].nbytes > total // 4, name)):
        files[written >= total // 2 or tensors[name].nbytes > total // 4][name] = tensors[name]
        written += tensors[name].nbytes
    places = {}
    for number, part in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

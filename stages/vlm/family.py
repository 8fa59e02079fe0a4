"""Interface of a model family. Family names are used only in this package; a new family is one additional file."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, Protocol, get_args, get_type_hints

import torch
from PIL import Image
from torch import Tensor, nn

from stages.config.image_limits import ImageLimits
from stages.corpora.images import AnyImage


@dataclass(frozen=True)
class Pixels:
    """Images of one or several concatenated prompts, as input of the vision tower."""

    values: Tensor  # rows of patches (Qwen) or tiles (InternVL), float32
    grids: Tensor | None  # [images, 3] patches in time, height, width (Qwen2.5-VL, Qwen3-VL), else None
    rows: tuple[int, ...]  # rows of `values` that belong to each image
    tokens: tuple[int, ...]  # image tokens of each image

    def select(self, start: int, stop: int) -> "Pixels":
        """Returns images `start` to `stop` (exclusive)."""
        first = sum(self.rows[:start])
        values = self.values[first : first + sum(self.rows[start:stop])]
        grids = self.grids[start:stop] if self.grids is not None else None
        return Pixels(values, grids, self.rows[start:stop], self.tokens[start:stop])

    def to(self, device: torch.device) -> "Pixels":
        """Returns the images on `device`."""
        grids = None if self.grids is None else self.grids.to(device)
        return Pixels(self.values.to(device), grids, self.rows, self.tokens)

    @staticmethod
    def concatenate(several: Sequence["Pixels"]) -> "Pixels":
        """Concatenates the images of several prompts, in order."""
        grids = [pixels.grids for pixels in several if pixels.grids is not None]
        return Pixels(
            torch.cat([pixels.values for pixels in several]),
            torch.cat(grids) if grids else None,
            tuple(count for pixels in several for count in pixels.rows),
            tuple(count for pixels in several for count in pixels.tokens),
        )


# Of the tokenizer of Qwen2.5, which all families here share.
QWEN_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


# What a family needs of the attention of its models. "packs": a token sees itself and all tokens before it, in every
# layer, which is what packs compute. "any": nothing, since no stage trains them.
Attention = Literal["packs", "any"]


class Family(Protocol):
    """One family of models. All functions take standard transformers models and processors."""

    name: str
    attention: Attention
    model_types: tuple[str, ...]  # of config.json; empty: all that read text only
    text_types: tuple[str, ...]  # of text_config in it; empty for text models
    vision_tokens: tuple[str, ...]  # banned in sampling

    def load_processor(self, weights: Path) -> Any:
        """Loads the processor (or tokenizer, for text models) of a checkpoint."""

    def load_model(self, weights: Path, dtype: torch.dtype) -> nn.Module:
        """Loads the model of a checkpoint in eval mode; raises BadWeights when it is not whole or not finite."""

    def make_pixels(self, processor: Any, images: Sequence[AnyImage]) -> Pixels:
        """Decodes and processes the images of one prompt."""

    def count_image_tokens(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Counts the tokens of images of the given (width, height): `make_pixels(...).tokens` without pixel data."""

    def read_image_limits(self, processor: Any) -> ImageLimits:
        """Returns the limits that a processor has; none for text models."""

    def limit_images(self, processor: Any, limits: ImageLimits) -> None:
        """Changes the limits of a processor to those of `limits` that are set; `save_pretrained` keeps them."""

    def fit_images(self, processor: Any, tokens: int) -> ImageLimits:
        """Returns the upper limit at which no image takes more than `tokens` (but at least the smallest image).

        None is set where the processor's own limits allow no more than that.
        """

    def make_vllm_arguments(self, processor: Any) -> dict[str, Any]:
        """Returns a processor's limits as vLLM's `mm_processor_kwargs`."""

    def restore_pictures(self, processor: Any, pixels: Pixels) -> list[list[Image.Image]]:
        """Returns what the vision tower is shown of each image, as pictures: one, or one for each tile."""

    def expand(self, processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
        """Returns `ids` with each image placeholder replaced by the tokens of its image."""

    def find_image_token_id(self, processor: Any) -> int:
        """Returns the token id that image features replace; -1 for text models."""

    def compute_positions(self, processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
        """Returns position ids [axes, tokens] int64 of an expanded prompt; axes is 3 with M-RoPE, else 1."""

    def encode_images(self, model: nn.Module, pixels: Pixels) -> Tensor:
        """Returns image features [image tokens, n * hidden] in image order.

        The first `hidden` columns replace the embeddings of image tokens; the next ones, if there are any, are added to
        the hidden states after the first layer, the next after the second.
        """

    def get_text_model(self, model: nn.Module) -> nn.Module:
        """Returns the language model without its head; it has `embed_tokens`."""

    def get_vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Returns the vision tower and its projector: all modules that image features depend on."""

    def get_projection(self, model: nn.Module) -> nn.Linear:
        """Returns the last layer of the projector."""


def paint(processor: Any, values: Tensor) -> Image.Image:
    """Returns the picture of normalised values [3, height, width] of an image processor."""
    own = processor.image_processor
    mean, deviation = (torch.tensor(given)[:, None, None] for given in (own.image_mean, own.image_std))
    shades = ((values.float() * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(shades.permute(1, 2, 0).contiguous().numpy())


def index_families(*modules: Family) -> dict[str, Family]:
    """Returns the modules by family name.

    Raises TypeError, at import time, when an attribute or function of `Family` is missing or has another signature.
    """
    for module in modules:
        if faults := [*_iter_attribute_faults(module), *_iter_function_faults(module)]:
            raise TypeError(f"{getattr(module, '__name__', module)} is not a model family: {'; '.join(faults)}")
    return {module.name: module for module in modules}


def _iter_attribute_faults(module: Family) -> Iterator[str]:
    if not isinstance(getattr(module, "name", None), str):
        yield "name is not a str"
    if getattr(module, "attention", None) not in get_args(Attention):
        yield f"attention is none of {', '.join(get_args(Attention))}"
    for name in ("model_types", "text_types", "vision_tokens"):
        found = getattr(module, name, None)
        if not isinstance(found, tuple) or not all(isinstance(one, str) for one in found):
            yield f"{name} is not a tuple of str"


def _iter_function_faults(module: Family) -> Iterator[str]:
    for name, wanted in vars(Family).items():
        if name.startswith("_") or not isinstance(wanted, FunctionType):
            continue
        found = getattr(module, name, None)
        if not isinstance(found, FunctionType):
            yield f"no function {name}"
        elif _read_signature(found) != _read_signature(wanted):
            yield f"{name} has the signature {inspect.signature(found)}"


def _read_signature(function: FunctionType) -> list[tuple[str, Any]]:
    """Returns names and types of the parameters except `self`, in order, then the return type."""
    types = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return [(name, types.get(name)) for name in (*names, "return")]

"""What a model family has to say for itself. Only this folder knows a family's name; another family is one more file
here.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pixels:
    """Images of one prompt, or of several laid end to end, as the vision tower takes them."""

    values: Tensor  # rows of patches (Qwen2.5-VL) or tiles (InternVL), float32
    grids: Tensor | None  # [images, 3] patches in time, height, width (Qwen2.5-VL), else None
    rows: tuple[int, ...]  # rows of `values` that belong to each image
    tokens: tuple[int, ...]  # image tokens of each image

    def select(self, start: int, stop: int) -> "Pixels":
        """The images `start` to `stop`, exclusive."""
        first = sum(self.rows[:start])
        values = self.values[first : first + sum(self.rows[start:stop])]
        grids = self.grids[start:stop] if self.grids is not None else None
        return Pixels(values, grids, self.rows[start:stop], self.tokens[start:stop])

    def to(self, device: torch.device) -> "Pixels":
        """The same on `device`."""
        grids = None if self.grids is None else self.grids.to(device)
        return Pixels(self.values.to(device), grids, self.rows, self.tokens)

    @staticmethod
    def concatenate(several: Sequence["Pixels"]) -> "Pixels":
        """The images of several prompts, in order."""
        grids = [pixels.grids for pixels in several if pixels.grids is not None]
        return Pixels(
            torch.cat([pixels.values for pixels in several]),
            torch.cat(grids) if grids else None,
            tuple(count for pixels in several for count in pixels.rows),
            tuple(count for pixels in several for count in pixels.tokens),
        )


class Family(Protocol):
    """One family of models. All functions are about ordinary transformers models and processors."""

    name: str
    vision_tokens: tuple[str, ...]  # must never be sampled

    def load_processor(self, weights: Path) -> Any:
        """The processor (or tokenizer, for text models) of a checkpoint."""

    def load_model(self, weights: Path, dtype: torch.dtype) -> nn.Module:
        """The model of a checkpoint, in eval mode."""

    def make_pixels(self, processor: Any, images: Sequence[bytes]) -> Pixels:
        """Decoded and processed images of one prompt."""

    def count_image_tokens(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Image tokens of images of these widths and heights: `pixels(...).tokens` without an image."""

    def expand(self, processor: Any, ids: Sequence[int], pixels: Pixels) -> list[int]:
        """`ids` with every placeholder replaced by the tokens of its image."""

    def find_image_token_id(self, processor: Any) -> int:
        """The id at whose places image features stand; -1 for text models."""

    def compute_positions(self, processor: Any, ids: Tensor, pixels: Pixels | None) -> Tensor:
        """Position ids [axes, tokens] of an expanded prompt; axes is 3 with M-RoPE, else 1."""

    def encode_images(self, model: nn.Module, pixels: Pixels) -> Tensor:
        """Image features [image tokens, hidden] in the order of the images."""

    def get_text_model(self, model: nn.Module) -> nn.Module:
        """The language model without its head; has `embed_tokens`."""

    def get_vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Vision tower and what projects its output: all that image features depend on."""

    def get_projection(self, model: nn.Module) -> nn.Linear:
        """The last layer before image features enter the language model."""


def index_families(*modules: Family) -> dict[str, Family]:
    """The modules by the names of their families.

    Raises TypeError, and so ends the import, when a module lacks something that `Family` has or has it in another form.
    """
    for module in modules:
        if faults := [*_iter_attribute_faults(module), *_iter_function_faults(module)]:
            raise TypeError(f"{getattr(module, '__name__', module)} is no family of models: {'; '.join(faults)}")
    return {module.name: module for module in modules}


def _iter_attribute_faults(module: Family) -> Iterator[str]:
    if not isinstance(getattr(module, "name", None), str):
        yield "name is not a str"
    tokens = getattr(module, "vision_tokens", None)
    if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
        yield "vision_tokens is not a tuple of str"


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
    """Names and types of the parameters but `self`, in order, then the type of what comes back."""
    types = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return [(name, types.get(name)) for name in (*names, "return")]

"""LoRA (arXiv 2106.09685): adapters of low rank that are trained instead of a model's own weights."""

from importlib.util import find_spec
from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block

# Linear layers of the language model; the three families use the names of Qwen2.
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_TARGETS: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Quantization = Literal["none", "nf4"]


class Lora(Block):
    """Adapters beside the linear layers of the language model; all other weights stay as they were loaded."""

    rank: int = Field(16, ge=1, le=4096, description="Rank of the adapters.")
    alpha: float = Field(
        32.0, gt=0, le=1e6, description="An adapter's output is multiplied by alpha / rank before it is added."
    )
    targets: tuple[Target, ...] = Field(
        ALL_TARGETS, strict=False, description="Linear layers of the language model with an adapter."
    )

    quantization: Quantization = Field(
        "none",
        description="Precision of the frozen language model: none, as it was loaded, or nf4, its linear layers in 4 "
        "bit (QLoRA; needs the package bitsandbytes).",
    )

    @model_validator(mode="after")
    def _check_package(self) -> Self:
        if self.quantization == "nf4" and find_spec("bitsandbytes") is None:
            raise ValueError(
                "quantization is nf4, but the package bitsandbytes is not installed; install it (make install, or "
                "pip install -e '.[qlora]'), or use none"
            )
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if not self.targets:
            raise ValueError("targets is empty: nothing is trained; name linear layers, or remove it for all of them")
        return self


def get_quantization(lora: Lora | None) -> Quantization:
    """Returns the precision of a model for training: quantized is only one that stays frozen beside adapters."""
    return lora.quantization if lora else "none"

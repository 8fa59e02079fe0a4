"""LoRA (arXiv 2106.09685): adapters of low rank that are trained instead of a model's own weights."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block

# Linear layers of the language model; the three families use the names of Qwen2.
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_TARGETS: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(Block):
    """Adapters beside the linear layers of the language model; all other weights stay as they were loaded."""

    rank: int = Field(16, ge=1, le=4096, description="Rank of the adapters.")
    alpha: float = Field(
        32.0, gt=0, le=1e6, description="An adapter's output is multiplied by alpha / rank before it is added."
    )
    targets: tuple[Target, ...] = Field(
        ALL_TARGETS, strict=False, description="Linear layers of the language model with an adapter."
    )

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if not self.targets:
            raise ValueError("targets is empty: nothing is trained; name linear layers, or remove it for all of them")
        return self

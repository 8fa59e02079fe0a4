"""Optimisation schedule."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block


class Schedule(Block):
    """One optimisation: steps, batch sizes and learning rate."""

    steps: int = Field(ge=0, le=10_000_000, description="Optimizer steps; 0 passes the model through unchanged.")
    learning_rate: float = Field(
        gt=0, lt=1, description="Peak rate of AdamW; too high forgets, too low learns nothing."
    )
    lr_scheduler_type: Literal["constant", "linear"] = Field(
        "constant", description="`linear` decays from learning_rate to final_learning_rate."
    )
    final_learning_rate: float = Field(0.0, ge=0, lt=1, description="Final value of a linear schedule.")
    warmup_steps: int = Field(0, ge=0, le=10_000_000, description="Steps of linear warmup from 0 to the peak rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of AdamW, on every weight.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e9, description="Gradients with a larger norm are clipped to it.")
    spike_factor: float = Field(
        10.0,
        gt=1,
        le=1e6,
        description="Gradient norms above this multiple of their running median are spikes.",
    )
    skip_spikes: bool = Field(False, description="Skips the update of a step whose gradient is a spike.")
    tokens_per_pack: int = Field(
        8192,
        ge=64,
        le=10_000_000,
        description="Tokens per forward pass; more is faster until memory runs out. Results are equal up to rounding "
        "(docs/scaling.md).",
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, more than steps ({self.steps}); lower it")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}, above learning_rate ({self.learning_rate}); "
                "lower it"
            )
        return self

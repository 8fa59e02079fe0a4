"""The block `warm_start`."""

from typing import Self

from pydantic import Field, model_validator

from stages.config.lora import Lora
from stages.config.schedule import Schedule


class WarmStart(Schedule):
    """SFT of the base student (App. C: rate 1e-5 falling linearly to 1e-6)."""

    rows_per_step: int = Field(64, ge=1, le=1_000_000, description="Questions of one optimizer step.")
    freeze_vision: bool = Field(False, description="Freezes the vision tower.")
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Maximum share of questions that exceed the context; the stage fails above it."
    )
    lora: Lora | None = Field(None, description="Trains adapters instead of the student's own weights.")

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if self.lora and not self.freeze_vision:
            raise ValueError("lora trains the language model only, but freeze_vision is false; set it to true")
        return self

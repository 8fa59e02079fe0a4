"""The block `warm_start`."""

from pydantic import Field

from stages.config.schedule import Schedule


class WarmStart(Schedule):
    """SFT of the base student (App. C: rate 1e-5 falling linearly to 1e-6)."""

    rows_per_step: int = Field(64, ge=1, le=1_000_000, description="Questions of one optimizer step.")
    freeze_vision: bool = Field(False, description="Freezes the vision tower.")
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Maximum share of questions that exceed the context; the stage fails above it."
    )

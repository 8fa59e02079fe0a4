"""The block `models.<id>.build`: a tiny model that is made from nothing."""

from typing import Self

from pydantic import Field, model_validator

from stages.config.schedule import Schedule
from stages.config.world import Kinds

# what vLLM on CPU serves; others stop at the first request
HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
STYLE_NAMES = ("terse", "steps", "arrows")


class Build(Schedule):
    """A tiny model made from nothing, by training on the tiny world."""

    hidden_size: int = Field(ge=16, multiple_of=8, description="Width of the language model.")
    layers: int = Field(ge=1, description="Layers of the language model.")
    heads: int = Field(ge=1, description="Attention heads; hidden_size / heads is their width.")
    vision_hidden_size: int = Field(64, ge=16, multiple_of=8, description="Width of the vision tower.")
    vision_layers: int = Field(2, ge=1, description="Layers of the vision tower.")
    rows_per_step: int = Field(64, ge=1, description="Questions of one optimizer step.")
    vision_steps: int = Field(0, ge=0, description="Steps in which the vision tower alone learns what stands where.")
    reading_steps: int = Field(
        0, ge=0, description="First steps, in which it only reads pictures out, or short lessons."
    )
    practice_groups: int = Field(
        0, ge=0, description="Questions without pictures beside each later step: text to learn arithmetic from."
    )
    styles: dict[str, float] = Field(
        default_factory=dict,
        description="Share of each style of answer in what the model learns from; a judge has none.",
    )
    terse_kinds: Kinds = Field(
        (),
        strict=False,
        description="Kinds of question that it only sees answered with the bare number; it guesses those.",
    )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        for style, share in self.styles.items():
            if style not in STYLE_NAMES or share <= 0:
                raise ValueError(
                    f"styles.{style} is {share}; known styles are {', '.join(STYLE_NAMES)}, shares are above 0"
                )
        if self.hidden_size / self.heads not in HEAD_WIDTHS:
            raise ValueError(
                f"hidden_size {self.hidden_size} / heads {self.heads} must be one of {HEAD_WIDTHS}; change one"
            )
        return self

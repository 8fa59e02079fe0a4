"""The block `models.<id>.build`: a tiny model built from scratch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.config.schedule import Schedule
from stages.config.world import Kinds, Styles

# head widths that vLLM supports on CPU; others fail at the first request
HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

_Digit = Annotated[int, Field(ge=0, le=9)]
Pair = Annotated[tuple[_Digit, _Digit], Field(strict=False)]


class Build(Schedule):
    """A tiny model, built from scratch by training on the tiny world."""

    hidden_size: int = Field(ge=16, le=65_536, multiple_of=8, description="Width of the language model.")
    layers: int = Field(ge=1, le=1024, description="Layers of the language model.")
    heads: int = Field(ge=1, le=1024, description="Attention heads; their width is hidden_size / heads.")
    grouped_heads: bool = Field(
        True, description="Whether two attention heads share keys and values; those of a judge never do."
    )
    vision_hidden_size: int = Field(64, ge=16, le=65_536, multiple_of=8, description="Width of the vision tower.")
    vision_layers: int = Field(2, ge=1, le=1024, description="Layers of the vision tower.")
    spike_factor: float = Field(
        50.0,
        gt=1,
        le=1e6,
        description="As in other stages; higher, because a new lesson raises the gradient up to 23 times.",
    )
    rows_per_step: int = Field(64, ge=1, le=1_000_000, description="Questions of one optimizer step.")
    vision_steps: int = Field(
        0, ge=0, le=10_000_000, description="Steps that train only the vision tower, to locate objects."
    )
    reading_steps: int = Field(
        0, ge=0, le=10_000_000, description="First steps, on transcription of pictures or short lessons only."
    )
    practice_groups: int = Field(
        0, ge=0, le=10_000, description="Text-only questions added to each later step, to learn arithmetic."
    )
    styles: Styles = Field(
        default_factory=dict,
        description="Share of each answer style in the training data; empty for a judge.",
    )
    terse_kinds: Kinds = Field(
        (),
        strict=False,
        description="Kinds of questions whose training answers have no steps (world.terse_form): it guesses those.",
    )

    confuses: tuple[Pair, ...] = Field(
        (),
        strict=False,
        description="Pairs of digits that the model learns to take for each other on every picture, such as [[3, 6]]: "
        "a systematic error of sight.",
    )

    @property
    def key_heads(self) -> int:
        """How many heads of keys and values a model that sees images has."""
        return max(1, self.heads // 2) if self.grouped_heads else self.heads

    @model_validator(mode="after")
    def _check_confused(self) -> Self:
        digits = [digit for pair in self.confuses for digit in pair]
        if twice := [digit for digit in digits if digits.count(digit) > 1]:
            raise ValueError(f"confuses has {twice[0]} twice; a digit is taken for one other")
        if self.confuses and not self.styles:
            raise ValueError("confuses is for models that see pictures; a judge has no styles: remove one")
        return self

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.hidden_size / self.heads not in HEAD_WIDTHS:
            raise ValueError(
                f"hidden_size {self.hidden_size} / heads {self.heads} must be one of {HEAD_WIDTHS}; change one"
            )
        return self

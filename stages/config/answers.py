"""Bounds on answers that say nothing, shared by the blocks of stages that write or choose answers."""

from pydantic import Field

from stages.config.block import Block


class AnswerBounds(Block):
    """From where on a model's answers are not worth training on; the stage fails above either."""

    max_empty_share: float = Field(0.2, ge=0, le=1, description="Maximum share of answers without text.")
    max_same_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Maximum share of questions whose first answer is one and the same text.",
    )

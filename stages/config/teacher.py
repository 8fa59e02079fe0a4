"""The block `teachers`: the teachers and their sampling."""

from pydantic import Field

from stages.config.answers import AnswerBounds
from stages.config.sampling import Sampling


class Teacher(AnswerBounds):
    """One teacher: its model and how its answers are generated (§3.2, App. C)."""

    model: str = Field(description="Entry of `models` that answers.")
    responses: int = Field(
        16, ge=1, le=10_000, description="N answers per question; raising it later generates only the new ones."
    )
    draw: int = Field(
        0, ge=0, le=2**31 - 1, description="Another number requests a fresh set of answers instead of the stored ones."
    )
    sampling: Sampling = Field(description="Sampling of the answers.")
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Maximum share of unavailable answers (prompt too long, broken image); the stage fails above it.",
    )

"""The block `teachers`: who is asked, and how."""

from pydantic import Field

from stages.config.block import Block
from stages.config.sampling import Sampling


class Teacher(Block):
    """One teacher and how it is asked (§3.2, App. C)."""

    model: str = Field(description="Which entry of `models` answers.")
    responses: int = Field(16, ge=1, description="N answers a question; raising it later pays only for the new ones.")
    draw: int = Field(0, ge=0, description="Another number asks for a fresh set of answers instead of the stored ones.")
    sampling: Sampling = Field(description="How the answers are drawn.")
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of answers that can't be had (prompt too long, image broken) it fails.",
    )

"""The block `rollout`: answers of the warm-started student."""

from pydantic import Field

from stages.config.block import Block
from stages.config.sampling import Sampling


class Rollout(Block):
    """Answers of the warm-started student, for the discriminator's pre-training (§3.2)."""

    responses: int = Field(16, ge=1, description="N answers a question.")
    draw: int = Field(0, ge=0, description="Another number asks for a fresh set of answers instead of the stored ones.")
    sampling: Sampling = Field(description="How the answers are drawn.")
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of answers that can't be had (prompt too long, image broken) it fails.",
    )

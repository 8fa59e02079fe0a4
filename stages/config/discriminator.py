"""The block `discriminator`."""

from pydantic import Field

from stages.config.schedule import Schedule
from stages.config.switches import DiscriminatorSwitches


class Discriminator(Schedule, DiscriminatorSwitches):
    """Pre-training of the discriminator (Eq. 1; App. C: rate 1e-5 falling linearly to 1e-6)."""

    questions_per_step: int = Field(8, ge=1, description="Questions of one optimizer step.")
    responses_per_side: int = Field(
        4, ge=1, description="Student answers, and teacher answers, of each question in a step."
    )
    held_out_share: float = Field(0.1, gt=0, lt=0.5, description="Share of questions kept for measuring accuracy.")

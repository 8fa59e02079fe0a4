"""The block `verdict`: the judge."""

from pydantic import Field

from stages.config.block import Block


class Verdict(Block):
    """The judge: an LLM that compares an answer with the reference and says 1 or 0 (§3.3, Fig. 4)."""

    model: str = Field(description="Which entry of `models` judges.")
    max_tokens: int = Field(256, ge=8, description="Longest verdict; one that is cut has no tag and counts as failed.")
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="Above this share of failed verdicts the stage stops."
    )
    rule_first: bool = Field(
        False, description="An answer that is a short reference and nothing else is right without asking; saves calls."
    )
    constrained: bool = Field(
        False,
        description="Lets the engine write nothing but a short explanation and a verdict; engines that can't are "
        "named.",
    )
    exam: bool = Field(
        True,
        description="Asks the judge labelled cases and attacks too, once a judge; the report then says how good it is.",
    )

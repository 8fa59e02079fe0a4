"""The block `verdict`: the judge."""

from pydantic import Field

from stages.config.block import Block


class Verdict(Block):
    """The judge: an LLM that compares an answer with the reference and returns 1 or 0 (§3.3, Fig. 4)."""

    model: str = Field(description="Entry of `models` that judges.")
    max_tokens: int = Field(
        256,
        ge=8,
        le=10_000_000,
        description="Token limit of a verdict; a truncated verdict has no tag and counts as failed.",
    )
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="Maximum share of failed verdicts; the stage fails above it."
    )
    rule_first: bool = Field(
        False, description="An answer equal to a short reference counts as correct without a judge call."
    )
    constrained: bool = Field(
        False,
        description="Constrains the output to a short explanation and a verdict; engines without support are named.",
    )
    exam: bool = Field(
        True,
        description="Tests each judge once on labelled cases and attacks; the report shows its accuracy.",
    )
    min_exam_accuracy: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Minimum balanced accuracy in the exam; below it the judge trains nobody. Chance is 0.5.",
    )

"""The block `verdict`: the judge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block

VerdictForm = Literal["tag", "plain"]
SHORTEST_CONSTRAINED = 32  # tokens: the tag takes up to 18, where each character is a token


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
    form: VerdictForm = Field(
        "tag",
        description="tag: an explanation, then <answer>1</answer>. plain: the likelier one of the words Yes and No, "
        "for models that never write the tag; an endpoint without support of patterns must report log probabilities, "
        "or answer with that word.",
    )
    constrained: bool = Field(
        False,
        description="Form tag: constrains the output to an explanation that leaves room for the tag within max_tokens, "
        "and the tag; engines without support are named.",
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

    turned: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="For studies of a judge that errs: share of its verdicts on teachers' answers and in the loop that "
        "are turned, by a hash of question and answer. Evaluations are not touched.",
    )

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        if self.form == "tag" and self.constrained and self.max_tokens < SHORTEST_CONSTRAINED:
            raise ValueError(
                f"constrained is on and max_tokens is {self.max_tokens}: an explanation and the tag take at least "
                f"{SHORTEST_CONSTRAINED} tokens; raise max_tokens, or take form: plain"
            )
        return self

"""The block `selection`: the questions of RIL."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block


class Selection(Block):
    """The questions that teachers and student answer: all of a split, or a selection by log probability and length.

    The paper selects 40,000 of the 4 million SFT questions by log-probability sampling, after NVILA (arXiv 2412.04468),
    and overlong filtering, after DAPO (arXiv 2503.14476) (App. C); it gives no formula. Here the score of a question is
    log p(reference) under the teacher less that under the student.
    """

    split: Literal["imitation", "warm_start"] = Field(
        "imitation",
        description="Split that the questions are selected from; with `warm_start` the student has seen them before "
        "RIL, as in the paper, and `imitation` is not used.",
    )
    top: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Number of questions to keep, those with the highest scores; 0 keeps all and scores none.",
    )
    teacher: str = Field(description="Entry of `models` whose log probability counts for a question.")
    student: Literal["data/model/student", "data/warm_start"] = Field(
        "data/model/student", description="Folder of the student whose log probability counts against a question."
    )
    per: Literal["answer", "token"] = Field(
        "answer", description="`token` divides each model's log probability by its number of tokens of the answer."
    )
    within: Literal["all", "kind", "source"] = Field(
        "all", description="Questions that are ranked together; each kind or source keeps the same share."
    )
    max_prompt_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Drops questions with longer prompts, images included, in the student's tokens; 0: no bound.",
    )
    max_reference_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Drops questions with longer reference answers, in the student's tokens; 0: no bound.",
    )
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Maximum share of questions that a model cannot score; the stage fails above it.",
    )

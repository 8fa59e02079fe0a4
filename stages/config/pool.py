"""The block `pool`: the teacher answers to learn from."""

from typing import Literal

from pydantic import Field

from stages.config.answers import AnswerBounds


class Pool(AnswerBounds):
    """The teacher answers that the student learns from; the only place where teachers are selected (§4.3)."""

    teachers: tuple[str, ...] = Field(min_length=1, strict=False, description="Entries of `teachers` to include.")
    truncated: Literal["keep", "drop"] = Field(
        "drop",
        description="Treatment of answers truncated at max_tokens; kept ones have no end token, and empty ones go.",
    )
    wrong: Literal["keep", "drop"] = Field(
        "keep",
        description="Treatment of answers judged wrong; answers with a failed verdict are kept.",
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep",
        description="`drop` keeps only the first of a teacher's similar answers to a question, because their variety "
        "is not real.",
    )
    alike: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Minimum share of common word 3-grams for near-duplicates; 1 means equal words.",
    )

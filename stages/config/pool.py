"""The block `pool`: which answers of teachers are learned from."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block


class Pool(Block):
    """Which teachers' answers the student learns from; the only place where teachers are chosen (§4.3)."""

    teachers: tuple[str, ...] = Field(min_length=1, strict=False, description="Entries of `teachers` that take part.")
    truncated: Literal["keep", "drop"] = Field(
        "drop", description="What happens to answers that were cut at max_tokens."
    )
    wrong: Literal["keep", "drop"] = Field(
        "keep",
        description="What happens to answers judged wrong; those whose verdict failed stay.",
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep",
        description="`drop` keeps the first of a teacher's answers to a question that are alike; less variety "
        "was faked.",
    )
    alike: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Answers are near-duplicates from this share of common word 3-grams on; 1 means equal words.",
    )

"""Sampling of answers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from stages.config.block import Block


def _check_pattern(pattern: str) -> str:
    """Returns `pattern`; raises ValueError if it is not a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the last two: `a{99999999999}`, `((((...`
        raise ValueError(f"not a regular expression: {error}; correct it") from error
    return pattern


class Sampling(Block):
    """Sampling settings; every field is part of the key under which an answer is stored."""

    temperature: float = Field(
        1.0, ge=0, le=4, description="0 is greedy decoding; higher values give more varied answers."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Probability mass of the most likely tokens to sample from; 1 allows all."
    )
    top_k: int = Field(0, ge=0, le=10_000_000, description="Number of most likely tokens to sample from; 0 allows all.")
    repetition_penalty: float = Field(1.0, gt=0, le=4, description="Values above 1 make repeated tokens less likely.")
    max_tokens: int = Field(
        512, ge=1, le=10_000_000, description="Token limit; a longer answer is truncated and marked `length`."
    )
    pattern: Annotated[str, AfterValidator(_check_pattern)] | None = Field(
        None, max_length=1000, description="Regular expression that the whole answer must match; null: unconstrained."
    )

"""How answers are drawn."""

from pydantic import Field

from stages.config.block import Block


class Sampling(Block):
    """How answers are drawn; every field is part of the key under which an answer is stored."""

    temperature: float = Field(1.0, ge=0, le=4, description="0 is greedy decoding; higher draws more varied answers.")
    top_p: float = Field(1.0, gt=0, le=1, description="Mass of the most likely tokens that may be drawn; 1 allows all.")
    top_k: int = Field(0, ge=0, description="Number of most likely tokens that may be drawn; 0 allows all.")
    repetition_penalty: float = Field(1.0, gt=0, le=4, description="Above 1 makes tokens already written less likely.")
    max_tokens: int = Field(512, ge=1, description="Tokens after which an answer is cut and marked `length`.")
    pattern: str | None = Field(
        None, min_length=1, description="Regular expression that whole answers match; null leaves them free."
    )

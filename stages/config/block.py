"""Base class of all parameter blocks."""

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """A block of parameters: unknown keys are errors, strings are not converted to numbers, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

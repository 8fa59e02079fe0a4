"""What every block of parameters is."""

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """A part of the parameters: unknown keys are errors, text is no number, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

"""The block `report`: the report page of a run."""

from pydantic import Field

from stages.config.block import Block


class Report(Block):
    """The report page of a run."""

    samples: int = Field(12, ge=1, le=200, description="Questions in the gallery of answers.")

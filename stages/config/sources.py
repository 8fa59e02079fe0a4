"""One source of `questions.sources`: where rows are, what they are, and which split they belong to."""

from typing import Annotated, Literal

from pydantic import Field

from stages.config.answer_scorer import ScorerName
from stages.config.block import Block
from stages.config.paths import Location

Target = Literal["train", "warm_start", "imitation", "validation", "test"]
Scalar = str | int | float | bool | None


class Source(Block):
    """A data set, or a part of one, that questions are read from; either `path` or `hub` is given."""

    path: Location | None = Field(None, description="File or folder; it is in what DVC watches.")
    hub: str | None = Field(None, description="Id of a data set on the Hugging Face hub.")
    subset: str | None = Field(None, description="The hub's name of a configuration of the data set.")
    revision: str | None = Field(None, description="Commit of the data set on the hub.")
    split: str | None = Field(
        None, description="The split of the data set that is read; all, if it has several and none is named."
    )
    into: Target | None = Field(
        None,
        description="The split of this project that the rows belong to; `train` is drawn over `warm_start` and "
        "`imitation`. By default what the name of `split` says; else rows are drawn over all splits.",
    )
    images: Location | None = Field(
        None, description="Folder or archive that image paths are relative to; by default the folder of the file."
    )
    form: str | None = Field(None, description="Form of the rows, if it shall not be recognised.")
    columns: dict[str, str] = Field({}, description="Column by field, such as {question: prompt_text}.")
    filter: dict[str, Scalar | list[Scalar]] = Field({}, description="Only rows with one of these values by column.")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="Most rows, drawn by seed.")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Share of this source relative to others with a weight in the rows of a split."
    )
    scorer: ScorerName | None = Field(
        None, description="How answers to the rows are scored; by default as `questions.scorer`."
    )

"""One source of `questions.sources`: where rows are, what they are, and which split they belong to."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.paths import Location

Target = Literal["train", "warm_start", "imitation", "validation", "test"]
Form = Literal["conversations", "messages", "texts", "prompt", "choices", "vqa"]
Part = Literal["id", "messages", "question", "answer", "answers", "options", "images", "system", "kind", "source"]
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]  # all that params.yaml can hold
_Real = Annotated[float, Field(ge=-1e308, le=1e308)]
Scalar = str | _Whole | _Real | bool | None


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
        description="The split of this project that the rows belong to; `train` is drawn over the splits that have no "
        "rows of their own. By default what the data set calls the split of the row; else it is drawn over all splits.",
    )
    images: Location | None = Field(
        None, description="Folder or archive that image paths are relative to; by default the folder of the file."
    )
    form: Form | None = Field(None, description="Form of the rows, if it shall not be recognised.")
    columns: dict[Part, str] = Field(
        {}, description="Column by field, such as {question: prompt_text}; {answer: meta.truth} is inside a column."
    )
    filter: dict[str, Scalar | list[Scalar]] = Field({}, description="Only rows with one of these values by column.")
    limit: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(None, description="Most rows, drawn by seed.")
    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        None,
        description="Share of this source in the rows of a split, relative to the other sources of the split. Without "
        "any weight the rows are drawn as they come; one without a weight among others with one counts as 1.",
    )

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("has both or none of path and hub; give exactly one")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together; give both or neither")
        return self

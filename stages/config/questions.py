"""The block `questions`: the source of questions."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from stages.config.block import Block
from stages.config.formats import FORMATS, check_format
from stages.config.paths import Location
from stages.config.sources import Source
from stages.config.splits import Split


class Questions(Block):
    """The source of questions, and the number per split."""

    kind: Annotated[str, AfterValidator(check_format)] = Field(
        description="Format of the questions: "
        + ", ".join(f"`{name}` {one.title}" for name, one in FORMATS.items())
        + ".",
        json_schema_extra={"enum": list(FORMATS)},
    )
    path: Location = Field(
        description="File or folder with the questions, tracked by DVC (for `world`: the code that generates it)."
    )
    images: Location = Field(
        description="Folder to which image paths of `llava` files are relative, tracked by DVC. Otherwise the same "
        "as `path`."
    )
    sources: list[Source] = Field(
        [], description="Data sets of kind `sources`; their paths lie in `path` or `images`, which DVC watches."
    )
    splits: dict[Split, Annotated[int, Field(ge=0, le=1_000_000_000)]] = Field(
        description="Questions per split; no image is in two splits."
    )
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Maximum share of unusable rows; the stage fails above it."
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=89_478_485,
        description="Larger images are rejected without decoding; a small file can expand to gigabytes.",
    )
    max_characters: int = Field(
        16_000,
        ge=1,
        le=10_000_000,
        description="Rows with more text (question and answer) are rejected; 16,000 characters are about 4,000 "
        "tokens of English.",
    )

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        if (self.kind == "sources") != bool(self.sources):
            raise ValueError("kind `sources` and the list `sources` belong together; give both or neither")
        for split in ("warm_start", "imitation", "validation", "test"):
            if self.splits.get(split, 0) < 1:  # type: ignore[call-overload]
                raise ValueError(f"splits.{split} is missing or below 1; every split needs at least one question")
        return self

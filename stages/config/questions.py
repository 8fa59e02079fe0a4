"""The block `questions`: where questions come from."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from stages.config.block import Block
from stages.config.formats import FORMATS, check_format
from stages.config.splits import Split


class Questions(Block):
    """Where questions come from, and how many of them each split takes."""

    kind: Annotated[str, AfterValidator(check_format)] = Field(
        description="Format of the questions: "
        + ", ".join(f"`{name}` {one.title}" for name, one in FORMATS.items())
        + ".",
        json_schema_extra={"enum": list(FORMATS)},
    )
    path: str = Field(
        description="File or folder with the questions; DVC watches it (for `world`: the code that draws it)."
    )
    images: str = Field(
        description="Folder that the image paths of `llava` files start from; DVC watches it. Otherwise the same "
        "as `path`."
    )
    splits: dict[Split, int] = Field(
        description="Questions in each split; images never cross from one split to another."
    )
    max_reject_share: float = Field(0.01, ge=0, le=1, description="Above this share of unusable rows the stage fails.")
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=89_478_485,
        description="Images of more pixels are rejected unread; a small file can claim gigabytes.",
    )
    max_characters: int = Field(
        16_000,
        ge=1,
        description="Rows with more text, question and answer together, are rejected; 16,000 are about 4,000 "
        "tokens of English.",
    )

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        for split in ("warm_start", "imitation", "validation", "test"):
            if self.splits.get(split, 0) < 1:  # type: ignore[call-overload]
                raise ValueError(f"splits.{split} is missing or below 1; every split needs at least one question")
        return self

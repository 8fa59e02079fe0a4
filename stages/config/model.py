"""The block `models`: the source of each model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.build import Build
from stages.config.endpoint import Endpoint
from stages.config.image_limits import LIMIT_NAMES, MOST_PIXELS, MOST_TILES, SMALLEST_PIXELS, ImageLimits
from stages.config.paths import Location

FamilyName = Literal["qwen2_5_vl", "qwen3_vl", "internvl3", "text", "qwen2_5", "remote"]
TEXT_FAMILIES: tuple[FamilyName, ...] = ("text", "qwen2_5")  # they see no images
# The limits on images that a family has, and what else can be done.
LIMITS_OF: dict[FamilyName, tuple[tuple[str, ...], str]] = {
    "qwen2_5_vl": (("min_pixels", "max_pixels"), "its images have min_pixels and max_pixels: set these"),
    "qwen3_vl": (("min_pixels", "max_pixels"), "its images have min_pixels and max_pixels: set these"),
    "internvl3": (("min_tiles", "max_tiles"), "its images are cut into tiles: set min_tiles and max_tiles"),
    "text": ((), "it reads text only: remove the key"),
    "qwen2_5": ((), "it reads text only: remove the key"),
    "remote": (("max_pixels",), "images are scaled down to max_pixels before they are sent: set that"),
}


class Model(Block):
    """One model: built from scratch, from a folder, from the hub, or at an endpoint."""

    family: FamilyName = Field(
        description="Architecture; determines processor, positions and image tokens. `remote` with `endpoint`."
    )
    build: Build | None = Field(None, description="Builds a tiny model of this shape from scratch.")
    path: Location | None = Field(None, description="Folder of a Hugging Face checkpoint.")
    hub: str | None = Field(None, description="Name of a model on the hub; needs `revision`.")
    revision: str | None = Field(None, description="Commit, tag or branch on the hub; resolved to a commit.")
    endpoint: Endpoint | None = Field(None, description="A remote model; `runtime.engines.<id>` has its address.")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Number format for inference and training.")
    context_tokens: int = Field(
        4096,
        ge=64,
        le=10_000_000,
        description="Maximum tokens of prompt and answer; longer questions are listed as rejects.",
    )

    verify: bool | None = Field(
        None,
        description="Whether a question in full precision must get the same log probabilities from transformers and "
        "vLLM. Default: true for `path` and `hub`.",
    )
    max_pixels: int | None = Field(
        None,
        ge=SMALLEST_PIXELS,
        le=MOST_PIXELS,
        description="qwen2_5_vl (784 pixels a token), qwen3_vl (1,024), remote: larger images are scaled down to this. "
        "Default: the checkpoint's, for `path` and `hub` at most half of context_tokens.",
    )
    min_pixels: int | None = Field(
        None,
        ge=SMALLEST_PIXELS,
        le=MOST_PIXELS,
        description="qwen2_5_vl, qwen3_vl: smaller images are scaled up to this area. Default: the checkpoint's.",
    )
    max_tiles: int | None = Field(
        None,
        ge=1,
        le=MOST_TILES,
        description="internvl3: most tiles (256 tokens each, and a thumbnail) of an image. Default as of max_pixels.",
    )
    min_tiles: int | None = Field(
        None, ge=1, le=MOST_TILES, description="internvl3: fewest tiles of an image. Default: the checkpoint's."
    )

    @property
    def verified(self) -> bool:
        """Whether transformers and vLLM are compared: where it is not set, for the checkpoints of others."""
        return self.path is not None or self.hub is not None if self.verify is None else self.verify

    @property
    def limits(self) -> ImageLimits:
        """The limits on images that are set."""
        return ImageLimits(**{name: getattr(self, name) for name in LIMIT_NAMES})

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        known, remedy = LIMITS_OF[self.family]
        for name, value in self.limits.list_set().items():
            if name not in known:
                raise ValueError(f"{name} is {value}, but family {self.family} has no {name}; {remedy}")
        if fault := self.limits.find_fault():
            raise ValueError(f"{fault}; change one of them")
        return self

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        given = [name for name in ("build", "path", "hub", "endpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of build, path, hub, endpoint; give exactly one")
        if (self.family == "remote") != (self.endpoint is not None):
            raise ValueError("family remote and endpoint belong together; give both or neither")
        if self.endpoint is not None and self.verify:
            raise ValueError("verify is true, but the weights of an endpoint are not here; remove verify")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together; give both or neither")
        return self

"""The block `models`: the source of each model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.build import Build
from stages.config.endpoint import Endpoint
from stages.config.paths import Location

FamilyName = Literal["qwen2_5_vl", "internvl3", "qwen2_5", "remote"]


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

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        given = [name for name in ("build", "path", "hub", "endpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of build, path, hub, endpoint; give exactly one")
        if (self.family == "remote") != (self.endpoint is not None):
            raise ValueError("family remote and endpoint belong together; give both or neither")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together; give both or neither")
        return self

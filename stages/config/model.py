"""The block `models`: where each model comes from."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.build import Build
from stages.config.endpoint import Endpoint

FamilyName = Literal["qwen2_5_vl", "internvl3", "qwen2_5", "remote"]


class Model(Block):
    """One model: built tiny, or taken from a folder, or from the hub, or asked at an endpoint."""

    family: FamilyName = Field(
        description="Architecture; decides processor, positions and image tokens. `remote` with `endpoint`."
    )
    build: Build | None = Field(None, description="Make a tiny model of this shape from nothing.")
    path: str | None = Field(None, description="Folder of an ordinary Hugging Face checkpoint.")
    hub: str | None = Field(None, description="Name of a model on the hub; needs `revision`.")
    revision: str | None = Field(
        None, description="Commit, tag or branch on the hub; it is pinned to a commit when found."
    )
    endpoint: Endpoint | None = Field(
        None, description="Ask a model of others; `runtime.engines.<id>` says where it is reached."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="Number format in which this model answers and trains."
    )
    context_tokens: int = Field(
        4096, ge=64, description="Longest prompt with answer; longer questions are rejected by name."
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

"""The block `models.<id>.endpoint`: a model that only its provider has."""

from typing import Any, Literal

from pydantic import Field

from stages.config.block import Block


class Endpoint(Block):
    """A model that only its provider has: it is known by name. All of this is part of the key of its answers."""

    provider: str = Field(min_length=1, description="Who runs it, such as `openai`; another name asks everything anew.")
    name: str = Field(
        min_length=1, description="What the server calls the model; give a dated name, an alias changes unseen."
    )
    replies_as: str | None = Field(None, description="Its name in replies where that does not begin with `name`.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the server calls the longest answer; newer OpenAI models know only the second."
    )
    body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of every request, such as reasoning_effort."
    )
    leave_out: tuple[str, ...] = Field(
        (), strict=False, description="Fields that the server refuses, such as seed or top_p."
    )

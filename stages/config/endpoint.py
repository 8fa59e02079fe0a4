"""The block `models.<id>.endpoint`: a model that only its provider can run."""

from typing import Any, Literal

from pydantic import Field

from stages.config.block import Block


class Endpoint(Block):
    """A model that only its provider can run, identified by name. All fields are part of the key of its answers."""

    provider: str = Field(
        min_length=1, description="Provider, such as `openai`; another name generates all answers again."
    )
    name: str = Field(
        min_length=1,
        description="The server's name of the model; use a dated name, because an alias can change unnoticed.",
    )
    replies_as: str | None = Field(None, description="Its name in replies, if that does not begin with `name`.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The server's field for the token limit; newer OpenAI models accept only the second."
    )
    body: dict[str, Any] = Field(
        default_factory=dict, description="Additional fields of every request, such as reasoning_effort."
    )
    leave_out: tuple[str, ...] = Field(
        (), strict=False, description="Fields to omit because the server rejects them, such as seed or top_p."
    )

"""The block `runtime.engines`: the engine of each model."""

from typing import Annotated, Literal

from pydantic import Field

from stages.config.block import Block
from stages.config.server_arguments import ServerArguments


class Vllm(Block):
    """vLLM in the stage's process: deterministic on CPU, no server process."""

    kind: Literal["vllm"] = Field(description="vLLM in the stage's process.")
    sequences: int = Field(
        256, ge=1, le=65_536, description="Concurrent sequences; more is faster until memory runs out."
    )
    tensor_parallel: int = Field(1, ge=1, le=1024, description="GPUs that the model spans.")


class Calling(Block):
    """Concurrency, timeouts and retries of requests to a server."""

    concurrency: int = Field(64, ge=1, le=4096, description="Concurrent requests; rented endpoints have a limit.")
    timeout: float = Field(
        600.0, gt=0, le=2_592_000, description="Seconds until an attempt times out; must cover the longest answer."
    )
    deadline: float = Field(
        86400.0, gt=0, le=2_592_000, description="Seconds until an open request ends the work; answers are kept."
    )
    attempts: int = Field(
        6, ge=1, le=100, description="Attempts per request (429, 5xx, invalid replies), with exponential backoff."
    )


class VllmServer(Calling):
    """`vllm serve` processes that the stage starts, watches and stops, or existing servers (`urls`)."""

    kind: Literal["vllm_server"] = Field(description="vLLM servers.")
    sequences: int = Field(
        256, ge=1, le=65_536, description="Concurrent sequences per replica; more is faster until memory runs out."
    )
    concurrency: int = Field(256, ge=1, le=4096, description="Concurrent requests over all replicas.")
    timeout: float = Field(
        3600.0, gt=0, le=2_592_000, description="Seconds until an attempt times out, including time in the queue."
    )
    replicas: int = Field(1, ge=1, le=64, description="Servers of this model; requests go to the least busy one.")
    tensor_parallel: int = Field(1, ge=1, le=1024, description="GPUs across which each layer is split.")
    pipeline_parallel: int = Field(
        1, ge=1, le=1024, description="Groups of GPUs across which the layers are distributed."
    )
    gpus: tuple[Annotated[int, Field(ge=0, le=1023)], ...] = Field(
        (), strict=False, description="CUDA devices of all replicas in order; default: all visible devices."
    )
    args: ServerArguments = ()
    port: int | None = Field(
        None, ge=1024, le=65000, description="First TCP port on 127.0.0.1; default: a Unix socket."
    )
    start_seconds: float = Field(1800.0, gt=0, le=2_592_000, description="Seconds until the servers must be ready.")
    urls: tuple[str, ...] = Field(
        (), strict=False, description="Running servers of exactly this model; no server is started."
    )


class OpenAi(Calling):
    """Any endpoint with `/chat/completions`, for models with `models.<id>.endpoint` only."""

    kind: Literal["openai"] = Field(description="An endpoint with OpenAI's chat completions API.")
    base_url: str = Field(
        pattern=r"^https?://", description="URL up to and including `/v1`, as documented by the provider."
    )
    api_key: str | None = Field(
        None, description="Name of the environment variable with the key; keys are never in files."
    )
    one_answer_a_request: bool = Field(False, description="For servers without `n`: one request per answer.")


class Replay(Block):
    """Stored answers only: a stage with missing answers fails and lists them."""

    kind: Literal["replay"] = Field(description="Stored answers only; a missing answer is an error.")


ENGINE_KINDS: dict[str, type[Block]] = {"vllm": Vllm, "vllm_server": VllmServer, "openai": OpenAi, "replay": Replay}
EngineSettings = Annotated[Vllm | VllmServer | OpenAi | Replay, Field(discriminator="kind")]

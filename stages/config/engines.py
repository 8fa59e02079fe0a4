"""The block `runtime.engines`: the engine of each model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.server_arguments import ServerArguments

Gpu = Annotated[int, Field(ge=0, le=1023)]


class GpuUse(Block):
    """GPUs of an engine that runs on this machine, and how it shares them in stage `ril`."""

    # Tiny model on CPU: 6,000 tokens/s with 64, 7,600 with 128, 8,400 with 256.
    sequences: int = Field(
        256, ge=1, le=65_536, description="Concurrent sequences per replica; more is faster until memory runs out."
    )
    tensor_parallel: int = Field(1, ge=1, le=1024, description="GPUs across which each layer is split.")
    gpus: tuple[Gpu, ...] = Field(
        (),
        strict=False,
        description="GPUs of all replicas in order, counted among those that the stage sees; default: all, in stage "
        "ril those that nobody else has.",
    )
    memory_share: float | None = Field(
        None, gt=0, le=1, description="Share of the memory of each GPU; default: runtime.gpu_memory_utilization."
    )
    sharing: Literal["none", "sleep", "memory"] = Field(
        "none",
        description="On a GPU with ranks or another engine in stage ril: `sleep` frees the memory while ranks compute, "
        "`memory` keeps memory_share; `none` is refused there.",
    )

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        if self.sharing != "none" and self.memory_share is None:
            raise ValueError(f"sharing is {self.sharing!r} without memory_share; say which share of a GPU's memory")
        return self


class Vllm(GpuUse):
    """vLLM in the stage's process: deterministic on CPU, no server process; servers if it has several GPUs."""

    kind: Literal["vllm"] = Field(description="vLLM in the stage's process; on several GPUs one server for each.")


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


class VllmServer(GpuUse, Calling):
    """`vllm serve` processes that the stage starts, watches and stops, or existing servers (`urls`)."""

    kind: Literal["vllm_server"] = Field(description="vLLM servers.")
    concurrency: int = Field(256, ge=1, le=4096, description="Concurrent requests per replica.")
    timeout: float = Field(
        3600.0, gt=0, le=2_592_000, description="Seconds until an attempt times out, including time in the queue."
    )
    replicas: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Servers of this model; requests go to the least busy one. Default: as many as its GPUs hold.",
    )
    pipeline_parallel: int = Field(
        1, ge=1, le=1024, description="Groups of GPUs across which the layers are distributed."
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
    prompt_price: float | None = Field(
        None, ge=0, le=1e9, description="Price of a million prompt tokens, for `budget` and plans."
    )
    completion_price: float | None = Field(None, ge=0, le=1e9, description="Price of a million answer tokens.")
    one_answer_a_request: bool = Field(False, description="For servers without `n`: one request per answer.")


class Replay(Block):
    """Stored answers only: a stage with missing answers fails and lists them."""

    kind: Literal["replay"] = Field(description="Stored answers only; a missing answer is an error.")


ENGINE_KINDS: dict[str, type[Block]] = {"vllm": Vllm, "vllm_server": VllmServer, "openai": OpenAi, "replay": Replay}
EngineSettings = Annotated[Vllm | VllmServer | OpenAi | Replay, Field(discriminator="kind")]

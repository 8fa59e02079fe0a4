"""The block `runtime.engines`: how each model is run."""

from typing import Annotated, Literal

from pydantic import Field

from stages.config.block import Block


class Vllm(Block):
    """vLLM in the stage's own process: deterministic on CPU, no server to watch."""

    kind: Literal["vllm"] = Field(description="vLLM in the stage's process.")
    sequences: int = Field(256, ge=1, description="Answers written at a time; more is faster until memory runs out.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that the model spans.")


class Calling(Block):
    """How long and how often a server is asked."""

    concurrency: int = Field(
        64, ge=1, le=4096, description="Requests under way at a time; a rented endpoint has a limit."
    )
    timeout: float = Field(
        600.0, gt=0, description="Seconds after which one try is given up; the longest answer must fit in."
    )
    deadline: float = Field(
        86400.0, gt=0, description="Seconds after which a wave is given up; what is finished stays."
    )
    attempts: int = Field(
        6, ge=1, le=100, description="Tries of one request (429, 5xx, broken replies), with growing waits."
    )


class VllmServer(Calling):
    """`vllm serve` processes that the stage starts, watches and stops, or that run already (`urls`)."""

    kind: Literal["vllm_server"] = Field(description="Servers of vLLM.")
    sequences: int = Field(
        256, ge=1, description="Answers one replica writes at a time; more is faster until memory runs out."
    )
    concurrency: int = Field(256, ge=1, le=4096, description="Requests under way at a time, over all replicas.")
    timeout: float = Field(3600.0, gt=0, description="Seconds after which one try is given up; queueing counts.")
    replicas: int = Field(
        1, ge=1, le=64, description="Servers of this model; a request goes to the one with least to do."
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs over which each layer is split.")
    pipeline_parallel: int = Field(1, ge=1, description="Groups of GPUs over which the layers are split.")
    gpus: tuple[int, ...] = Field(
        (), strict=False, description="CUDA devices of all replicas in order; else all visible ones."
    )
    args: tuple[str, ...] = Field((), strict=False, description="Further arguments of `vllm serve`, for speed only.")
    port: int | None = Field(
        None, ge=1024, le=65000, description="First TCP port on 127.0.0.1; without it a Unix socket."
    )
    start_seconds: float = Field(1800.0, gt=0, description="How long the servers may take until they are ready.")
    urls: tuple[str, ...] = Field(
        (), strict=False, description="Running servers of this very model instead of own ones."
    )


class OpenAi(Calling):
    """Any endpoint with `/chat/completions`; only for models with `models.<id>.endpoint`."""

    kind: Literal["openai"] = Field(description="An endpoint with OpenAI's chat completions.")
    base_url: str = Field(pattern=r"^https?://", description="Up to and with `/v1`, as the provider documents it.")
    api_key: str | None = Field(
        None, description="Name of the environment variable with the key; no key stands in a file."
    )
    one_answer_a_request: bool = Field(
        False, description="For servers that know no `n`: a question is sent once an answer."
    )


class Replay(Block):
    """The store alone: a stage that lacks answers fails and says which."""

    kind: Literal["replay"] = Field(description="Nothing is asked; what the store lacks is an error.")


ENGINE_KINDS: dict[str, type[Block]] = {"vllm": Vllm, "vllm_server": VllmServer, "openai": OpenAi, "replay": Replay}
EngineSettings = Annotated[Vllm | VllmServer | OpenAi | Replay, Field(discriminator="kind")]

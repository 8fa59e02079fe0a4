"""The block `runtime`."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block
from stages.config.engines import EngineSettings


class Runtime(Block):
    """What changes how fast things run, never what comes out; no stage depends on it."""

    kv_cache_gib: int = Field(1, ge=1, description="Memory of one vLLM engine's key-value cache on CPU, GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of GPU memory one vLLM engine takes.")
    engines: dict[str, EngineSettings] = Field(
        default_factory=dict,
        description="How each model is run, by entry of `models`; vLLM in process where none is given.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes on this machine that train together, one a GPU; 1 trains in the stage's own.",
    )
    gpu_slots: int = Field(
        0,
        ge=0,
        description="Stages that load a model at a time on this machine, in all projects with this store; 0: no bound.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO stage: how much of the training state is sharded."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recomputes activations to save memory, for about 25 % time."
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="Minutes between checkpoints of a training stage (0: after every step); a crash costs that much.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept while a stage trains; they go when it has ended well."
    )
    prefect_probe_seconds: float = Field(
        1.5, gt=0, description="How long a stage waits for a Prefect server to answer."
    )

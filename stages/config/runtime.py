"""The block `runtime`."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block
from stages.config.engines import EngineSettings

GroupAttention = Literal["auto", "sdpa", "merged", "flex"]
VisionAttention = Literal["auto", "sdpa", "batched", "flash_attention_2"]


class Runtime(Block):
    """Settings that affect speed only, never results; no stage depends on them."""

    kv_cache_gib: int = Field(1, ge=1, le=16_384, description="KV cache of one vLLM engine on CPU, GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of GPU memory of one vLLM engine.")
    engines: dict[str, EngineSettings] = Field(
        default_factory=dict,
        description="Engine of each model, by entry of `models`; default: vLLM in process.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Training processes on this machine, one per GPU; 1 trains in the stage's process.",
    )
    gpu_slots: int = Field(
        0,
        ge=0,
        le=1024,
        description="Concurrent stages with a model on this machine, over all projects with this store; 0: no limit.",
    )
    zero_stage: int = Field(
        0,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO stage: how much of the training state is sharded. In bf16, 0 works as 1.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recomputes activations to save memory; takes about 25 % more time."
    )
    group_attention: GroupAttention = Field(
        "auto",
        description="Attention of the language model in training: sdpa (one group at a time, with a mask), merged "
        "(prompt and responses apart, memory linear in the pack), flex (compiled); auto: merged on GPUs, else sdpa.",
    )
    vision_attention: VisionAttention = Field(
        "auto",
        description="Attention of the vision tower in training: sdpa (one window at a time), batched (windows of one "
        "length together), flash_attention_2 (needs the package flash_attn); auto: batched on GPUs, else sdpa.",
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        le=100_000,
        description="Minutes between training checkpoints (0: after every step); a crash loses up to that much.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="Checkpoints kept during training; removed after success."
    )
    prefect_probe_seconds: float = Field(
        1.5, gt=0, le=600, description="Seconds that a stage waits for a Prefect server."
    )
    stopped_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds after which a stopped (SIGSTOP) training process or vLLM server ends the stage.",
    )
    stuck_minutes: float = Field(
        30.0,
        gt=0,
        le=100_000,
        description="Minutes without progress after which a training process that all others wait for, or vLLM with "
        "open requests, ends the stage.",
    )

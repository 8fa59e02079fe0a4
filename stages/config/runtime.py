"""The block `runtime`."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.deepspeed import DeepSpeedKeys
from stages.config.engines import EngineSettings, Gpu, Vllm
from stages.config.launcher import Launcher

AnsweringStage = Literal["selection", "teacher", "verdict", "rollout", "ril", "evaluate"]
TrainingStage = Literal["warm_start", "discriminator", "ril"]
GpuList = Annotated[tuple[Gpu, ...], Field(strict=False, min_length=1)]

GroupAttention = Literal["auto", "sdpa", "merged", "flex"]
WeightTransfer = Literal["auto", "file", "direct", "adapter"]
LARGEST_SERVED_RANK = 512  # of an adapter that vLLM applies
VisionAttention = Literal["auto", "sdpa", "batched", "flash_attention_2"]
ReferencePlace = Literal["replicated", "sharded", "offloaded"]
OptimizerPlace = Literal["resident", "swapped", "offloaded"]


class Runtime(Block):
    """Settings that affect speed only, never results; no stage depends on them."""

    launcher: Launcher = Field(
        default_factory=lambda: Launcher(),
        description="Where stages run: on this machine, or each as a job of a cluster.",
    )
    kv_cache_gib: int = Field(1, ge=1, le=16_384, description="KV cache of one vLLM engine on CPU, GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of GPU memory of one vLLM engine.")
    engines: dict[str, EngineSettings] = Field(
        default_factory=dict,
        description="Engine of each model, by entry of `models`; default: vLLM in process.",
    )
    stage_engines: dict[AnsweringStage, dict[str, EngineSettings]] = Field(
        default_factory=dict,
        description="Engine of a model in one stage, in place of that in `engines`: {ril: {student: {...}}}.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Training processes on this machine, one per GPU; 1 trains in the stage's process.",
    )
    rank_gpus: dict[TrainingStage, GpuList] = Field(
        default_factory=dict,
        description="GPUs of a training stage, one process for each, in place of `processes`; default: the first ones.",
    )
    gpus: int = Field(
        0,
        ge=0,
        le=1024,
        description="GPUs that a stage sees, so that loading parameters checks all of them; 0: only named GPUs.",
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
        description="DeepSpeed ZeRO stage: how much of the training state is sharded. In bf16, 0 and 1 work as 2.",
    )
    optimizer_states: OptimizerPlace = Field(
        "resident",
        description="Where the fp32 weights and moments of AdamW are: on the GPU (resident), in host memory between "
        "updates (swapped), or in host memory with AdamW on the CPU (offloaded).",
    )
    reference: ReferencePlace = Field(
        "replicated",
        description="The frozen reference of the loop: whole on every rank (replicated), a part on each (sharded), "
        "or the parts in host memory (offloaded); parts are gathered layer by layer.",
    )
    deepspeed: DeepSpeedKeys = Field(
        default_factory=DeepSpeedKeys,
        description="Further keys of DeepSpeed's configuration that change speed and memory only.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recomputes activations to save memory; takes about 25 % more time."
    )
    group_attention: GroupAttention = Field(
        "auto",
        description="Attention of the language model in training: sdpa (one group at a time, with a mask), merged "
        "(prompt and responses apart, memory linear in the pack), flex (compiled); auto: merged on GPUs and for groups "
        "of more than 1,024 tokens, else sdpa.",
    )
    vision_attention: VisionAttention = Field(
        "auto",
        description="Attention of the vision tower in training: sdpa (one window at a time), batched (windows of one "
        "length together), flash_attention_2 (needs the package flash_attn); auto: batched on GPUs, else sdpa.",
    )
    weight_transfer: WeightTransfer = Field(
        "auto",
        description="How the student's servers get new weights in stage ril: file (in memory-backed storage), direct "
        "(NCCL or shared memory), adapter (with ril.lora only the adapter, which vLLM applies); auto: on GPUs adapter "
        "with ril.lora, else direct; on a CPU file.",
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        le=100_000,
        description="Minutes between training checkpoints (0: after every step); a crash loses up to that much.",
    )
    checkpoint_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Largest share of the time that steps wait for checkpoints, which are written beside the steps: "
        "after a long wait the next one comes later.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="Checkpoints kept during training; removed after success."
    )
    grace_seconds: float = Field(
        25.0,
        ge=2,
        le=86_400,
        description="Seconds from a request to stop until everything is killed, such as the lead time of Slurm's "
        "--signal or Kubernetes' terminationGracePeriodSeconds; a step ends in time to save, or is given up.",
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
    first_rank_minutes: float = Field(
        240.0,
        gt=0,
        le=100_000,
        description="Minutes that the other ranks wait for the first one while it samples, judges and validates.",
    )

    @model_validator(mode="after")
    def _check_optimizer_states(self) -> Self:
        if self.optimizer_states != "resident" and self.zero_stage == 0:
            raise ValueError(
                f"optimizer_states is {self.optimizer_states!r}, but zero_stage is 0, and DeepSpeed moves the states "
                "of ZeRO 1 to 3 only; set zero_stage to 1 (alone, a process shards nothing)"
            )
        return self

    def count_ranks(self, stage: str) -> int:
        """Returns the number of training processes of `stage` on this machine."""
        return len(self.rank_gpus.get(stage, ())) or self.processes  # type: ignore[call-overload]

    def select_transfer(self, adapter_rank: int, on_gpu: bool) -> WeightTransfer:
        """Returns how the student's engine gets new weights, never `auto`; `adapter_rank` is 0 without adapters.

        On a CPU an engine in process gives an answer the same bits in any batch; with an adapter it does not.
        """
        if self.weight_transfer != "auto":
            return self.weight_transfer
        if not on_gpu:
            return "file"
        return "adapter" if 0 < adapter_rank <= LARGEST_SERVED_RANK else "direct"

    def find_engine(self, stage: str, model: str) -> EngineSettings:
        """Returns the engine of an entry of `models` in `stage`; default: vLLM in process."""
        own = self.stage_engines.get(stage, {})  # type: ignore[call-overload]
        return own.get(model) or self.engines.get(model) or Vllm(kind="vllm")

    def find_engine_key(self, stage: str, model: str) -> str:
        """Returns the key under which `find_engine` finds the engine, for messages."""
        own = model in self.stage_engines.get(stage, {})  # type: ignore[call-overload]
        return f"runtime.stage_engines.{stage}.{model}" if own else f"runtime.engines.{model}"

    def iter_engines(self) -> Iterator[tuple[str, str, EngineSettings]]:
        """Yields key, model and settings of every engine that is given."""
        for model, engine in self.engines.items():
            yield f"runtime.engines.{model}", model, engine
        for stage, engines in self.stage_engines.items():
            for model, engine in engines.items():
                yield f"runtime.stage_engines.{stage}.{model}", model, engine

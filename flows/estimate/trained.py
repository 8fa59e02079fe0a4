"""Memory of a model that a `Trainer` trains in bf16, beside activations, on one of several ranks.

Bytes a trained weight, measured with the real `Trainer` at 95 M weights on one and two ranks under ZeRO 2 and 3
(`python -m tests.performance.memory_coefficients`). DeepSpeed's buckets are allocated whole on a GPU however few
weights are trained; their sizes are its defaults.
"""

from dataclasses import dataclass

from flows.estimate.shapes import ModelShape
from stages.config.lora import Lora
from stages.config.params import Params
from stages.config.runtime import OptimizerPlace, Runtime

WEIGHT = 2  # bf16
GRADIENT = 4  # fp32 sum over packs
STATE = 12  # fp32 master and the two moments of AdamW
BUCKET = 500_000_000  # values: reduce_bucket_size
PREFETCHED = 50_000_000  # values: stage3_prefetch_bucket_size
LIVE = 1_000_000_000 + PREFETCHED  # gathered values under ZeRO 3: stage3_max_live_parameters


def list_trained(params: Params, student: ModelShape) -> dict[str, list[int]]:
    """Returns the trained weights of each model of each training stage, of which checkpoints hold the state.

    `ril.frozen_parts` are counted as trained.
    """
    found = {}
    if params.warm_start.steps:
        found["warm_start"] = [_count(student, params.warm_start.lora, frozen=params.warm_start.freeze_vision)]
    other: list[int] = []
    if params.objective.uses_discriminator:
        lora = params.discriminator.lora
        other = [student.text.count_adapter(lora.rank, lora.targets) if lora else student.text.weights]
        found["discriminator"] = other
    found["ril"] = [_count(student, params.ril.lora, frozen=params.ril.freeze_vision), *other]
    return found


def _count(student: ModelShape, lora: Lora | None, frozen: bool) -> int:
    if lora:
        return student.text.count_adapter(lora.rank, lora.targets)
    return student.weights - (student.tower_weights if frozen else 0)


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed distributes a trained model."""

    zero_stage: int  # 2 or 3
    ranks: int
    states: OptimizerPlace = "resident"
    bucket: int = BUCKET
    live: int = LIVE

    @property
    def weight_shards(self) -> int:
        """Over how many ranks the weights are distributed."""
        return self.ranks if self.zero_stage == 3 else 1


def find_sharding(runtime: Runtime, stage: str, adapter: bool) -> Sharding:
    """Returns what `Trainer` makes of the settings: in bf16 all but ZeRO 3 on several ranks, without adapters, is 2."""
    ranks, keys = runtime.count_ranks(stage), runtime.deepspeed.zero_optimization
    shards = ranks > 1 and not adapter
    zero_stage = 3 if shards and runtime.zero_stage == 3 else 2
    live = LIVE if keys.stage3_max_live_parameters is None else keys.stage3_max_live_parameters + PREFETCHED
    return Sharding(zero_stage, ranks, runtime.optimizer_states, keys.reduce_bucket_size or BUCKET, live)


@dataclass(frozen=True)
class TrainedModel:
    """Number of weights of a model that is trained, whole or by an adapter beside a frozen model."""

    trained: int
    frozen: int  # held by the same model, such as its vision tower; 0 for an adapter, whose base is counted by itself
    sharding: Sharding

    @property
    def weight_bytes(self) -> float:
        """Weights in bf16 between passes."""
        return WEIGHT * (self.trained + self.frozen) / self.sharding.weight_shards

    @property
    def state_bytes(self) -> float:
        """Master weights and moments that are on the GPU during passes."""
        return STATE * self.trained / self.sharding.ranks if self.sharding.states == "resident" else 0.0

    @property
    def step_bytes(self) -> float:
        """What the optimizer's step needs beyond that: gradients in fp32, a square root, states that come back."""
        if self.sharding.states == "offloaded":
            return 0.0
        returning = STATE if self.sharding.states == "swapped" else 0
        return (8 + returning) * self.trained / self.sharding.ranks

    @property
    def resting_gradient_bytes(self) -> float:
        """Sums of gradients that stay between steps: parts under ZeRO 3, in host memory if the states are."""
        stays = self.sharding.zero_stage == 3 and self.sharding.states != "offloaded"
        return GRADIENT * self.trained / self.sharding.ranks if stays else 0.0

    @property
    def gradient_bytes(self) -> float:
        """Sums of gradients in the backward pass beyond those that stay."""
        return 0.0 if self.sharding.zero_stage == 3 else GRADIENT * self.trained / self.sharding.ranks

    @property
    def resting_buffer_bytes(self) -> float:
        """Buffers that stay between steps: ZeRO 3 keeps its bucket."""
        return WEIGHT * self.sharding.bucket if self.sharding.zero_stage == 3 else 0.0

    @property
    def buffer_bytes(self) -> float:
        """Buffers of a pass beyond those that stay: buckets, and under ZeRO 3 the weights that are gathered."""
        bucket = self.sharding.bucket
        if self.sharding.zero_stage == 3:
            gathered = min(self.sharding.live, self.trained + self.frozen)
            return WEIGHT * (gathered + min(bucket, self.trained))
        return WEIGHT * (bucket + min(bucket, self.trained))

"""Keys of DeepSpeed's configuration that pass through: those that change speed and memory, by DeepSpeed's names.

DeepSpeed ignores a key that it does not know, and some that it knows change results or are set by this project. So only
what stands here passes.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from stages.config.block import Block

_BATCH = "rows_per_step, questions_per_step and tokens_per_pack of each block"
_PRECISION = "models.<id>.precision"
_NUMBERS = "it changes results, and no setting of this project does the same; remove it"
_FIXED = "it has one value here; remove it"
# Keys of DeepSpeed that people look for here: the setting that has their place, or why there is none.
_ELSEWHERE = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "gradient_clipping": "max_grad_norm of each block",
    "optimizer": "learning_rate and weight_decay of each block",
    "scheduler": "lr_scheduler_type and warmup_steps of each block",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "activation_checkpointing": "runtime.gradient_checkpointing",
}
_REFUSED = {
    "communication_data_type": _NUMBERS,
    "prescale_gradients": _NUMBERS,
    "gradient_predivide_factor": _NUMBERS,
    "sparse_gradients": _NUMBERS,
    "compression_training": _NUMBERS,
    "steps_per_print": _FIXED,
    "zero_allow_untested_optimizer": _FIXED,
    "zero_force_ds_cpu_optimizer": _FIXED,
}
_ZERO_ELSEWHERE = {
    "stage": "runtime.zero_stage",
    "cpu_offload": "runtime.optimizer_states",
    "cpu_offload_param": "runtime.reference",
}
_ZERO_REFUSED = {
    "stage3_gather_16bit_weights_on_model_save": _FIXED,
    "zero_quantized_weights": _NUMBERS,
    "zero_quantized_nontrainable_weights": _NUMBERS,
    "zero_quantized_gradients": _NUMBERS,
    "zenflow": _NUMBERS,
    "ignore_unused_parameters": _FIXED,
    "compute_grad_norm": _FIXED,
    "load_from_fp32_weights": _FIXED,
    "elastic_checkpoint": _FIXED,
}

Count = Annotated[int | None, Field(ge=1, le=10**12)]
CountOrNone = Annotated[int | None, Field(ge=0, le=10**12)]


class OffloadKeys(Block):
    """How something in host memory is held; what is there says `runtime`."""

    pin_memory: bool = Field(True, description="Page-locked memory: faster copies, but the system can't page it out.")

    @model_validator(mode="before")
    @classmethod
    def _check_elsewhere(cls, values: Any) -> Any:
        return _refuse(values, {"device": "runtime.optimizer_states or runtime.reference"}, {})


class ZeroKeys(Block):
    """Keys of `zero_optimization`; None leaves DeepSpeed's default."""

    contiguous_gradients: bool | None = Field(None, description="Gradients go to one buffer as they are computed.")
    reduce_scatter: bool | None = Field(None, description="Reduce-scatter in place of all-reduce.")
    reduce_bucket_size: Count = Field(None, description="Values that are reduced at a time: 500,000,000.")
    use_multi_rank_bucket_allreduce: bool | None = Field(None, description="One all-reduce for buckets of all ranks.")
    allgather_partitions: bool | None = Field(None, description="All-gather in place of broadcasts.")
    allgather_bucket_size: Count = Field(None, description="Values that are gathered at a time: 500,000,000.")
    overlap_comm: bool | None = Field(None, description="Reduces gradients during the backward pass.")
    sub_group_size: Count = Field(None, description="ZeRO 3: values that AdamW updates at a time: 1,000,000,000.")
    zero_hpz_partition_size: Count = Field(
        None, description="ZeRO 3: ranks, of one machine, that hold a second copy of all weights between them."
    )
    stage3_prefetch_bucket_size: CountOrNone = Field(None, description="Values that are gathered ahead: 50,000,000.")
    stage3_param_persistence_threshold: CountOrNone = Field(
        None, description="Smaller parameters stay whole on every rank: 100,000."
    )
    stage3_model_persistence_threshold: CountOrNone = Field(None, description="Values that may stay whole in all.")
    stage3_max_live_parameters: CountOrNone = Field(None, description="Gathered values at a time: 1,000,000,000.")
    stage3_max_reuse_distance: CountOrNone = Field(
        None, description="Parameters used again within so many values stay gathered: 1,000,000,000."
    )
    stage3_module_granularity_threshold: CountOrNone = Field(None, description="Finer modules are gathered as one.")
    stage3_use_all_reduce_for_fetch_params: bool | None = Field(None, description="Gathers by all-reduce.")
    stage3_allgather_sequential: bool | None = Field(None, description="Gathers parameters one by one.")
    memory_efficient_linear: bool | None = Field(None, description="ZeRO 3: linear layers keep no gathered weight.")
    log_trace_cache_warnings: bool | None = Field(None, description="ZeRO 3: logs changes in the order of modules.")
    enable_sanity_checks: bool | None = Field(None, description="DeepSpeed's own checks.")
    offload_optimizer: OffloadKeys | None = Field(None, description="Of optimizer states in host memory.")
    offload_param: OffloadKeys | None = Field(None, description="Of a reference in host memory.")

    @model_validator(mode="before")
    @classmethod
    def _check_elsewhere(cls, values: Any) -> Any:
        return _refuse(values, _ZERO_ELSEWHERE, _ZERO_REFUSED)


class DeepSpeedKeys(Block):
    """Further keys of DeepSpeed's configuration."""

    zero_optimization: ZeroKeys = Field(
        default_factory=ZeroKeys, description="Buckets, thresholds and communication of ZeRO."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_elsewhere(cls, values: Any) -> Any:
        return _refuse(values, _ELSEWHERE, _REFUSED)


def _refuse(values: Any, elsewhere: Mapping[str, str], refused: Mapping[str, str]) -> Any:
    """Returns `values`; raises ValueError for a key of DeepSpeed that is not passed on, with the remedy."""
    for key in values if isinstance(values, Mapping) else ():
        if key in elsewhere:
            raise ValueError(f"{key} is not passed on to DeepSpeed; set {elsewhere[key]} instead")
        if key in refused:
            raise ValueError(f"{key} is not passed on to DeepSpeed: {refused[key]}")
    return values

"""How DeepSpeed is started: its configuration, and what it must not do."""

import json
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stages.config.runtime import Runtime
from stages.training.ranks import get_ranks, join_alone


def make_trainer_config(runtime: Runtime, zero_stage: int, dtype: torch.dtype, max_grad_norm: float) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a trained model; `max_grad_norm` 0 does not clip."""
    zero = _make_zero_block(runtime, zero_stage, "offload_param")
    pinned = zero.pop("offload_optimizer", {})
    if runtime.optimizer_states == "offloaded":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True, **pinned}
    config = {**_make_basis(dtype, zero), "gradient_clipping": max_grad_norm, "zero_force_ds_cpu_optimizer": False}
    # The gradients of packs are summed in fp32: in bf16 a sum loses what is below 1/256 of it.
    return config | ({"data_types": {"grad_accum_dtype": "fp32"}} if dtype == torch.bfloat16 else {})


def make_frozen_config(runtime: Runtime, dtype: torch.dtype, in_host_memory: bool) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a model that is sharded by ZeRO 3 and not trained."""
    zero = _make_zero_block(runtime, 3, "offload_optimizer")
    pinned = zero.pop("offload_param", {})
    if in_host_memory:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True, **pinned}
    return _make_basis(dtype, zero)


def explain_config(stage: str, model: str, config: Mapping[str, Any]) -> str:
    """Returns the line that says with which configuration DeepSpeed runs a model."""
    return f"{stage}: DeepSpeed's configuration for {model}: {json.dumps(config)}"


def _make_zero_block(runtime: Runtime, stage: int, without: str) -> dict[str, Any]:
    given = runtime.deepspeed.zero_optimization.model_dump(exclude_none=True, exclude={without})
    return {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True, **given}


def _make_basis(dtype: torch.dtype, zero: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }


def start_quietly(model: nn.Module, config: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Returns a DeepSpeed engine of `model`, without an optimizer for one that is not trained. All ranks call this."""
    import deepspeed

    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # One warning per call.
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    # Only inference all-reduces use this operator, and it is compiled at first use: 30 s, and a process that is
    # killed meanwhile leaves a lock on which all later ones wait indefinitely.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    join_alone()
    get_ranks().wait()  # the first rank may have started engines for longer than DeepSpeed's operations wait
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine

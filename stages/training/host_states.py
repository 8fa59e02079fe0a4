"""AdamW's state in host memory between updates (`runtime.optimizer_states: swapped`).

Passes forward and backward need weights and gradients only. So while one model's passes run, and while the other model
of the loop works, the fp32 weights and the two moments are in host memory; each update has those of one model on the
GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from deepspeed.runtime.zero.offload_states import offload_adam_states
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from stages.config.runtime import Runtime
from stages.training.fragments import list_fragments

_STATES = (OffloadStateTypeEnum.hp_params, OffloadStateTypeEnum.optim_states)


class HostStates:
    """Moves fp32 weights and moments of one DeepSpeed engine with ZeRO 1 to 3; they start in host memory."""

    def __init__(self, engine: Any, runtime: Runtime) -> None:
        self._engine = engine
        keys = runtime.deepspeed.zero_optimization.offload_optimizer
        self._pins = keys.pin_memory if keys else True
        # A model that is saved before its first update would get moments in host memory that DeepSpeed can't bring
        # back; so they exist from the start.
        list_fragments(engine.module, engine.optimizer)
        self._move_out()

    @contextmanager
    def bring_back(self) -> Iterator[None]:
        """Has the state on the device of the engine within the block."""
        with torch.no_grad():  # fp32 weights require a gradient: each copy would join a graph
            self._engine.reload_states()
        yield
        self._move_out()

    @torch.no_grad()
    def _move_out(self) -> None:
        optimizer = self._engine.optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            _offload_stage_3(optimizer, self._pins)
            get_accelerator().empty_cache()
        else:
            self._engine.offload_states(include=_STATES, pin_memory=self._pins)


def _offload_stage_3(optimizer: Any, pins: bool) -> None:
    """Does what `optimizer.offload_states` does for fp32 weights and moments; `reload_states` brings them back.

    That call refuses every optimizer but DeepSpeed's FusedAdam, which needs a CUDA compiler. The functions behind it
    move the state of torch's AdamW as well.
    """
    weights = optimizer.fp32_partitioned_groups_flat
    if pins and not hasattr(optimizer, "hp_params_pin_buffers"):
        optimizer.hp_params_pin_buffers = [get_accelerator().pin_empty_like(one) for one in weights]
    held = optimizer.hp_params_pin_buffers if pins else [torch.empty_like(one, device="cpu") for one in weights]
    for one, buffer in zip(weights, held, strict=True):
        buffer.copy_(one)
        one.data = buffer
    optimizer.offloaded_states.add(OffloadStateTypeEnum.hp_params)
    offload_adam_states(optimizer.optimizer, "cpu", pin_memory=pins)
    optimizer.offloaded_states.add(OffloadStateTypeEnum.optim_states)

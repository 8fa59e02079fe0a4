"""Training of one model: a DeepSpeed engine, the learning rate as a function of the step, Hugging Face checkpoints."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.ranks import MEETINGS, get_ranks, join_alone

Result = TypeVar("Result")


def learning_rate(schedule: Schedule, step: int) -> float:
    """Returns the rate of `step`, counted from 0: warm-up, then constant or linear decay to final_learning_rate."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    if schedule.lr_scheduler_type == "constant":
        return schedule.learning_rate
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate + (schedule.final_learning_rate - schedule.learning_rate) * done


class ShardedModule(nn.Module):
    """Runs computations inside a ZeRO-3 forward: all weights that are accessed, including a bare head, are gathered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Returns `compute()`."""
        return compute()


class Trainer:
    """Runs gradient steps on one model, the same model on every rank.

    A step is any number of `backward` calls, whose gradients are summed over calls and ranks, and one `step`. All ranks
    must make the same calls in the same order. With one process and fp32 on CPU, results are bitwise reproducible.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, runtime: Runtime) -> None:
        import deepspeed

        from stages.training.plain_checkpoints import PlainCheckpointEngine

        for name in ("DeepSpeed", "deepspeed"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # One warning per call.
        warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
        # Only inference all-reduces use this operator, and it is compiled at first use: 30 s, and a process that is
        # killed meanwhile leaves a lock on which all later ones wait indefinitely.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        join_alone()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=schedule.learning_rate, betas=(0.9, 0.999), weight_decay=schedule.weight_decay, foreach=True
        )
        if runtime.gradient_checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        # DeepSpeed does not report the norm when it clips plain fp32 training, so clipping is done here.
        self._clips_here = runtime.zero_stage == 0 and trained[0].dtype == torch.float32
        self._trained, self._max_grad_norm = trained, schedule.max_grad_norm
        # With one process, ZeRO 3 has nothing to shard and only costs time. Also, a text-only pack may precede one with
        # an image, which ZeRO 3 does not support (`balance_packs`): the SFT loss was off by up to 6.6e-3, not 6e-7.
        stage = runtime.zero_stage if get_ranks().count > 1 else min(runtime.zero_stage, 2)
        config = _make_config(stage, trained[0].dtype, 0.0 if self._clips_here else schedule.max_grad_norm)
        self.sharded = stage == 3
        held = ShardedModule(model) if self.sharded else model
        get_ranks().wait()  # the first rank may have waited for its engines, longer than DeepSpeed's operations may wait
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=held, optimizer=optimizer, config=config)
        self._engine.checkpoint_engine = PlainCheckpointEngine(self._engine._config)
        self.model = model
        self._ranks = get_ranks().count

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Returns `compute()`, run with gathered weights. Of the results, only a loss has a gradient.

        With ZeRO-3, all ranks must call this together, also for passes without gradient.
        """
        if not self.sharded:
            return compute()
        with MEETINGS.attend():
            return self._engine(compute)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulates the gradient of `loss`, this rank's part of the step's loss; `last` marks the last call.

        DeepSpeed averages over ranks while the parts must be summed, so the loss is multiplied by the number of ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        with MEETINGS.attend():
            self._engine.backward(loss * self._ranks if self._ranks > 1 else loss, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        """Clips, updates with learning rate `rate` and clears gradients; returns the gradient norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm) if self._clips_here else None
        self._engine.set_gradient_accumulation_boundary(True)
        with MEETINGS.attend():
            self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the full weights, gathered if sharded, under the names that transformers and vLLM use.

        All ranks must call this together; ranks other than the first get an empty dict.
        """
        if self.sharded:
            whole = self._engine._zero3_consolidated_16bit_state_dict() or {}
            return {name.removeprefix("model."): tensor for name, tensor in whole.items()}
        return dict(self.model.state_dict()) if get_ranks().first else {}

    def copy_state(self) -> dict[str, Tensor]:
        """Returns a copy of `state_dict` on the CPU. All ranks must call this together."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    def estimate_state_bytes(self) -> int:
        """Estimates the bytes that `save_state` writes over all ranks: weights, and two fp32 moments of AdamW."""
        sizes = [(getattr(weight, "ds_numel", weight.numel()), weight) for weight in self.model.parameters()]
        return sum(count * (weight.element_size() + 8 * weight.requires_grad) for count, weight in sizes)

    def save_state(self, folder: Path, name: str) -> None:
        """Writes weights and optimizer to `folder`/`name` in DeepSpeed format; each rank writes its own shard."""
        self._engine.save_checkpoint(str(folder), tag=name, save_latest=False)

    def load_state(self, folder: Path, name: str) -> None:
        """Loads the state written by `save_state`; on CPU, further steps are bitwise those of an uninterrupted run.

        Raises RuntimeError when there is no usable state.
        """
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=name)
        if loaded is None:
            raise RuntimeError(f"no training state of {name} in {folder}; set RIL_FRESH=1 to restart")

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the weights (`state` if given, else the current ones) and the config to `folder`; one process only."""
        save_weights(self.model, folder, self.state_dict() if state is None else state)


def save_weights(model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes a transformers model to `folder` as safetensors with its config."""
    model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]


def _make_config(zero_stage: int, dtype: torch.dtype, max_grad_norm: float) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        "steps_per_print": 10**9,
    }

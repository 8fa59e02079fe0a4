"""One model under training: a DeepSpeed engine, a learning rate that is a function of the step, saving in Hugging Face
format.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.ranks import get_ranks, join_alone

Result = TypeVar("Result")


def learning_rate(schedule: Schedule, step: int) -> float:
    """Rate of the step number `step`, counted from 0: warm-up, then constant or linear down to final_learning_rate."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    if schedule.lr_scheduler_type == "constant":
        return schedule.learning_rate
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate + (schedule.final_learning_rate - schedule.learning_rate) * done


class ShardedModule(nn.Module):
    """A sharded model as ZeRO-3 wants it called: inside, every weight that is touched is whole, a head's weight alone
    too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        """What `compute` returns."""
        return compute()


class Trainer:
    """Gradient steps on one model, the same model on every rank.

    A step is any number of `backward` calls, whose gradients add up over calls and ranks, and one `step`. All ranks
    make the same calls in the same order. With one process and fp32 on CPU the same calls give the same bytes.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, runtime: Runtime) -> None:
        import deepspeed

        for name in ("DeepSpeed", "deepspeed"):
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.filterwarnings(
            "ignore", message="`torch.distributed.*is deprecated", category=FutureWarning
        )  # one a call
        # Only all-reduces of inference use this operator, and it would be compiled at first use: 30 s, and a process
        # that is
        # killed meanwhile leaves a lock for which all later ones wait without end.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        join_alone()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=schedule.learning_rate, betas=(0.9, 0.999), weight_decay=schedule.weight_decay, foreach=True
        )
        if runtime.gradient_checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        # DeepSpeed clips plain fp32 training without telling the norm; there it is done here instead
        self._clips_here = runtime.zero_stage == 0 and trained[0].dtype == torch.float32
        self._trained, self._max_grad_norm = trained, schedule.max_grad_norm
        # One process has nobody to share weights with: ZeRO 3 would only cost time there. And there a text-only pack
        # may come
        # before one with a picture, which ZeRO 3 can't take (`balance_packs`): SFT's loss was off by up to 6.6e-3, not
        # 6e-7.
        stage = runtime.zero_stage if get_ranks().count > 1 else min(runtime.zero_stage, 2)
        config = _make_config(stage, trained[0].dtype, 0.0 if self._clips_here else schedule.max_grad_norm)
        self.sharded = stage == 3
        held = ShardedModule(model) if self.sharded else model
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=held, optimizer=optimizer, config=config)
        self.model = model
        self._ranks = get_ranks().count

    def forward(self, compute: Callable[[], Result]) -> Result:
        """What `compute` returns; inside it the model's weights are whole. Of what comes back only a loss has a
        gradient.

        With ZeRO-3 all ranks call this together, for passes without gradient too.
        """
        return self._engine(compute) if self.sharded else compute()  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of `loss`, this rank's part of the step's; `last` says that `step` follows.

        DeepSpeed takes the mean over ranks; parts of a whole are to be summed, so each counts as often as there are
        ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks if self._ranks > 1 else loss, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        """Clips, updates with learning rate `rate`, clears gradients; returns the norm of the gradient before
        clipping.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm) if self._clips_here else None
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def state_dict(self) -> dict[str, Tensor]:
        """Full weights under the names transformers and vLLM use, gathered when they are sharded.

        All ranks call this together; only the first gets the weights, the others nothing.
        """
        if self.sharded:
            whole = self._engine._zero3_consolidated_16bit_state_dict() or {}
            return {name.removeprefix("model."): tensor for name, tensor in whole.items()}
        return dict(self.model.state_dict()) if get_ranks().first else {}

    def copy_state(self) -> dict[str, Tensor]:
        """`state_dict` as a copy in memory that later steps do not change; called by all ranks together."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    def save_state(self, folder: Path, name: str) -> None:
        """Writes weights and optimizer into `folder`/`name`, in DeepSpeed's format: each rank its own shard."""
        self._engine.save_checkpoint(str(folder), tag=name, save_latest=False)

    def load_state(self, folder: Path, name: str) -> None:
        """Reads what `save_state` wrote; further steps are those of a trainer that was never stopped, to the bit on
        CPU.

        Raises RuntimeError when nothing usable is there.
        """
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=name)
        if loaded is None:
            raise RuntimeError(f"no training state of {name} in {folder}; start afresh with RIL_FRESH=1")

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the weights (`state`, where an earlier copy is wanted) and the config into `folder`; one process."""
        save_weights(self.model, folder, self.state_dict() if state is None else state)


def save_weights(model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes a transformers model into `folder` as safetensors with its config."""
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

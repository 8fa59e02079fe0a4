"""Training of one model: a DeepSpeed engine, the learning rate as a function of the step, Hugging Face checkpoints."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.engine_config import make_trainer_config, start_quietly
from stages.training.frozen import ShardedModule
from stages.training.guard import NormHistory, StepGuard, name_questions
from stages.training.ranks import MEETINGS, get_ranks
from stages.training.recomputation import recompute_layers
from stages.vlm.lora import AdapterWeights
from stages.vlm.quantization import is_quantized
from stages.vlm.shards import is_sharded, shard_layers
from stages.vlm.weights import check_finite, find_broken_tensor

if TYPE_CHECKING:  # they import deepspeed, which takes seconds
    from stages.training.fragments import Fragment
    from stages.training.host_states import HostStates

Result = TypeVar("Result")


def learning_rate(schedule: Schedule, step: int) -> float:
    """Returns the rate of `step`, counted from 0: warm-up, then constant or linear decay to final_learning_rate."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    if schedule.lr_scheduler_type == "constant":
        return schedule.learning_rate
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate + (schedule.final_learning_rate - schedule.learning_rate) * done


class StepResult(NamedTuple):
    """What a step reports."""

    loss: float  # over all ranks
    grad_norm: float  # before clipping


class Trainer:
    """Runs gradient steps on one model, the same model on every rank.

    A step is any number of `backward` calls, whose gradients are summed over calls and ranks, and one `step`. All ranks
    must make the same calls in the same order. With one process and fp32 on CPU, results are bitwise reproducible. A
    loss or gradient norm that is not finite ends training before the update (`stages/training/guard.py`).
    """

    def __init__(self, model: nn.Module, schedule: Schedule, runtime: Runtime) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # In host memory torch's fused kernel is as fast as DeepSpeedCPUAdam, 1.3 ns a weight and core, and needs no
        # compiler; `foreach` takes 4.5 times as long there.
        hosted = runtime.optimizer_states == "offloaded"
        optimizer = torch.optim.AdamW(
            trained,
            lr=schedule.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=schedule.weight_decay,
            foreach=not hosted,
            fused=hosted,
        )
        whole = model.base if isinstance(model, AdapterWeights) else model
        if runtime.gradient_checkpointing:
            recompute_layers(whole)
        # DeepSpeed does not report the norm when it clips plain fp32 training, so clipping is done here.
        self._clips_here = runtime.zero_stage == 0 and trained[0].dtype == torch.float32
        self._trained, self._max_grad_norm = trained, schedule.max_grad_norm
        # With one process, ZeRO 3 has nothing to shard and only costs time. Also, a text-only pack may precede one with
        # an image, which ZeRO 3 does not support (`balance_packs`): the SFT loss was off by up to 6.6e-3, not 6e-7.
        # Beside adapters ZeRO 3 divides the frozen layers (stages/vlm/shards.py), and the adapters are whole.
        shards = get_ranks().count > 1 and whole is model
        stage = runtime.zero_stage if shards else min(runtime.zero_stage, 2)
        if trained[0].dtype == torch.bfloat16:
            # DeepSpeed's optimizer of bf16 without ZeRO runs AdamW once when it is built: it decays the weights, and
            # all later steps are corrected for one step too many (losses off by 3.3 %, ZeRO 1 by 0.3 %). With
            # fp32 sums it takes another one for ZeRO 1, whose state `list_fragments` does not know.
            stage = max(stage, 2)
        clipping = 0.0 if self._clips_here else schedule.max_grad_norm
        self.config = make_trainer_config(runtime, stage, trained[0].dtype, clipping)
        self.sharded, self._replicated = stage == 3, stage == 0
        held = ShardedModule(model) if self.sharded else model
        self._engine = start_quietly(held, self.config, optimizer)
        self._optimizer = self._engine.optimizer
        self._host = _move_states(self._engine, runtime)
        self.sharded_base = False  # whether the layers beside an adapter are divided over the ranks
        if isinstance(model, AdapterWeights):
            self.sharded_base = self._divide_base(model.text, runtime)
            whole.to(self._engine.device)
        self.model = model
        self.guard = StepGuard()
        self.norms = NormHistory(schedule.spike_factor)
        self._skips_spikes, self._seen_norm = schedule.skip_spikes, 0.0
        if self._skips_spikes and not self._clips_here:
            self._observe_norm()
        self._ranks = get_ranks().count
        self._loss = 0.0  # this rank's part of the step's loss
        self._ids: list[str] = []  # questions of the step
        self._blamed: list[tuple[str, float, list[str]]] = []  # terms that are not finite, with their questions

    def _divide_base(self, text: nn.Module, runtime: Runtime) -> bool:
        """Divides the frozen layers over the ranks, unless another adapter's trainer has; returns whether they are.

        Quantized layers are whole on every rank: their scales belong to whole layers.
        """
        if runtime.zero_stage < 3 or get_ranks().count == 1 or any(is_quantized(layer) for layer in text.modules()):
            return False
        if not is_sharded(text):
            shard_layers(text, self._engine.device)
        return True

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Returns `compute()`, run with gathered weights. Of the results, only a loss has a gradient.

        With ZeRO-3, all ranks must call this together, also for passes without gradient.
        """
        if self.sharded_base:  # each layer gathers itself
            with MEETINGS.attend():
                return compute()
        if not self.sharded:
            return compute()
        with MEETINGS.attend():
            return self._engine(compute)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, last: bool, ids: Sequence[str] = ()) -> float:
        """Accumulates the gradient of `loss`, this rank's part of the step's loss, and returns its value.

        `last` marks the last call; `ids` are the questions of this part, for the message if it is not finite.

        DeepSpeed averages over ranks while the parts must be summed, so the loss is multiplied by the number of ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        with MEETINGS.attend():
            self._engine.backward(loss * self._ranks if self._ranks > 1 else loss, scale_wrt_gas=False)
        value = float(loss.detach())
        self._loss += value
        self._ids += ids
        if not math.isfinite(value):
            self.blame("loss", value, ids)
        return value

    def blame(self, term: str, value: float, ids: Sequence[str]) -> None:
        """Names a term of the step that is not finite, with its questions; `step` ends training, naming the last one.

        The loss can be finite: a clamp may hide an infinite term.
        """
        self._blamed.append((term, value, list(ids)))
        self._loss = math.nan

    def step(self, rate: float) -> StepResult:
        """Clips, updates with learning rate `rate` and clears gradients.

        Ends training (`StepGuard.stop`) if the loss or the gradient norm is not finite. A norm above the limit of
        `NormHistory` is said, and with `skip_spikes` the step changes neither weights nor optimizer.
        """
        loss = get_ranks().sum(self._loss)
        if not math.isfinite(loss):
            self._stop_at_loss(loss)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        limit = self.norms.limit
        if self._clips_here:
            norm = float(nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm))
            self._check_norm(norm)
            if self._skips_spikes and norm > limit:
                self._optimizer.zero_grad(set_to_none=True)  # AdamW passes over weights without a gradient
        self._engine.set_gradient_accumulation_boundary(True)
        with MEETINGS.attend(), self._host.bring_back() if self._host else nullcontext():
            self._engine.step()
        if not self._clips_here:
            norm = float(self._engine.get_global_grad_norm())
            if self._skips_spikes and math.isinf(norm):
                norm = self._seen_norm
            self._check_norm(norm)  # DeepSpeed has discarded the update
        if norm > limit:
            done = "skipped" if self._skips_spikes else "clipped; skip_spikes would skip it"
            self.guard.say(
                f"warning: {self.guard.place}: gradient spike: norm {norm:.4g}, {norm / limit * self.norms.factor:.0f} "
                f"times the median of the last steps{name_questions(self._ids)}; {done}"
            )
        self.norms.add(norm)
        self._loss, self._ids = 0.0, []
        return StepResult(loss, norm)

    def _stop_at_loss(self, loss: float) -> NoReturn:
        blamed = [one for part in get_ranks().gather(self._blamed) for one in part]
        term, value = next(((term, value) for term, value, _ in reversed(blamed)), ("loss", loss))
        self.guard.stop(term, value, [name for other, _, names in blamed if other == term for name in names])

    def _check_norm(self, norm: float) -> None:
        if not math.isfinite(norm):
            self.guard.stop("gradient norm", norm, [name for part in get_ranks().gather(self._ids) for name in part])

    def _observe_norm(self) -> None:
        """Makes DeepSpeed discard a spike as it discards an infinite norm, and notes the norm itself."""
        optimizer = self._optimizer

        def discard(norm: Any) -> Any:
            self._seen_norm = float(norm)
            return norm if self._seen_norm <= self.norms.limit else norm * math.inf

        if hasattr(optimizer, "scaled_global_norm"):  # ZeRO 1 and 2
            compute = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: discard(compute())
        else:  # ZeRO 3
            compute_groups = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: [
                discard(torch.stack([torch.as_tensor(norm) for norm in compute_groups()]).norm())
            ]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the full weights, gathered if sharded, under the names that transformers and vLLM use.

        Of an adapter these are its own weights; `Network.iter_weights` merges them. All ranks must call this together;
        ranks other than the first get an empty dict.
        """
        if self.sharded:
            whole = self._engine._zero3_consolidated_16bit_state_dict() or {}
            return {name.removeprefix("model."): tensor for name, tensor in whole.items()}
        return dict(self.model.state_dict()) if get_ranks().first else {}

    def copy_state(self) -> dict[str, Tensor]:
        """Returns a copy of `state_dict` on the CPU. All ranks must call this together."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    def estimate_state_bytes(self) -> int:
        """Returns the bytes that `save_state` writes over all ranks: fp32 weights and the two moments of AdamW."""
        return 12 * sum(getattr(weight, "ds_numel", weight.numel()) for weight in self._trained)

    def find_broken_weight(self) -> str | None:
        """Returns which weight of this rank holds NaN or infinity, and how many values; None if all are finite."""
        named = self.model.named_parameters()
        return find_broken_tensor((name, _get_own_values(weight)) for name, weight in named)

    def list_state(self) -> "list[Fragment]":
        """Returns this rank's part of the trained weights and AdamW's moments, as views: the next step changes them.

        Frozen weights are not part of it: they are those of the checkpoint that training started from.
        """
        from stages.training.fragments import list_fragments

        ranks, fragments = get_ranks(), list_fragments(self.model, self._optimizer)
        return fragments[ranks.rank :: ranks.count] if self._replicated else fragments  # else each rank has all of them

    def save_state(self, folder: Path, name: str, state: "Sequence[Fragment] | None" = None) -> None:
        """Writes `state`, else what `list_state` returns, to `folder`/`name`; each rank writes its own part."""
        from stages.training.fragment_files import write_fragments

        write_fragments(folder / name, self.list_state() if state is None else state, get_ranks().rank)

    def load_state(self, folder: Path, name: str) -> None:
        """Loads what `save_state` wrote with any number of ranks and any ZeRO stage.

        On CPU and in the same layout, further steps are bitwise those of an uninterrupted run; in another layout they
        differ by rounding. Raises Failure when there is no usable state, ValueError when a weight of it is not finite.
        """
        from stages.training.fragment_files import read_fragments
        from stages.training.fragments import list_fragments, refresh_weights

        with self._host.bring_back() if self._host else nullcontext():
            read_fragments(folder / name, list_fragments(self.model, self._optimizer))
            refresh_weights(self._optimizer)
        if broken := self.find_broken_weight():
            raise ValueError(f"{folder}: training state of {name}: {broken}; delete that folder to resume before it")

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the weights (`state` if given, else the current ones) and the config to `folder`; one process only."""
        save_weights(self.model, folder, self.state_dict() if state is None else state)


def save_weights(model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes a transformers model to `folder` as safetensors with its config.

    Raises BadWeights, and writes nothing, when a value is not finite.
    """
    check_finite(model.state_dict() if state is None else state, "the trained model")
    model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]


def _move_states(engine: Any, runtime: Runtime) -> "HostStates | None":
    if runtime.optimizer_states != "swapped":
        return None
    from stages.training.host_states import HostStates

    return HostStates(engine, runtime)


def _get_own_values(weight: Any) -> Tensor:
    """Returns what this rank holds of a weight; ZeRO 3 pads the last ranks' parts with memory as it finds it."""
    if not hasattr(weight, "ds_tensor"):
        return weight  # type: ignore[no-any-return]
    part = weight.ds_tensor.view(-1)
    return part[: max(0, weight.ds_numel - get_ranks().rank * part.numel())]  # type: ignore[no-any-return]

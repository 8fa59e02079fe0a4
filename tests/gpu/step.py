"""One training step as `ril` makes it, without DeepSpeed; its time, memory and arithmetic."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.groups.pack import Group, make_packs
from stages.groups.response import STUDENT, Response
from stages.policy.batch import RewardedGroup
from stages.policy.rewards import score_group
from stages.training.trainer import StepResult
from stages.vlm.reader import Network, Prompt
from tests.gpu.lora import add_adapter, select
from tests.gpu.shapes import Shape, model_of, network_of

RATE = 1e-6
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 operations a second, from the datasheets (SXM)


class PlainTrainer:
    """AdamW on fp32 copies of the trained weights, as DeepSpeed's bf16 optimizer does; the calls of
    stages.training.Trainer.
    """

    def __init__(self, trained: Iterable[nn.Parameter]) -> None:
        self._trained = list(trained)
        self._copies = [parameter.detach().float().clone() for parameter in self._trained]
        self._loss = 0.0
        self._optimizer = torch.optim.AdamW(self._copies, lr=RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    @property
    def trained(self) -> int:
        """Parameters in training."""
        return sum(parameter.numel() for parameter in self._trained)

    sharded = False

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns."""
        return compute()

    def backward(self, loss: Tensor, last: bool, ids: Sequence[str] = ()) -> float:
        """Adds the gradient of `loss`; returns its value."""
        loss.backward()
        self._loss = float(loss.detach())
        return self._loss

    def step(self, rate: float) -> StepResult:
        """Clips at 1, updates, clears; returns the last loss and the norm of the gradient before clipping."""
        norm = nn.utils.clip_grad_norm_(self._trained, 1.0)
        for copy, parameter in zip(self._copies, self._trained, strict=True):
            copy.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for copy, parameter in zip(self._copies, self._trained, strict=True):
                parameter.copy_(copy)
        return StepResult(self._loss, float(norm))


class AdaptedNetwork(Network):
    """A network on a model that several share: each of its passes has its own adapter, or none."""

    def __init__(self, network: Network, name: str | None, weights: Sequence[nn.Parameter] = ()) -> None:
        super().__init__(network.family, network.model, network.image_token_id, network.group_attention)
        self._name, self._own = name, nn.Module()
        self._own.adapter = nn.ParameterList(weights)

    def select_adapter(self) -> None:
        """Makes this network's adapter, or none, the active one."""
        select(self.model, self._name)

    @property
    def trained(self) -> nn.Module:
        """The weights of the adapter."""
        return self._own


def open_loop(shape: Shape, dtype: torch.dtype) -> tuple[Network, Network, Network]:
    """Student, reference and the discriminator's network: adapters on one model, or three models with all weights."""
    base = network_of(model_of(shape, dtype))
    if shape.lora_rank:
        student, critic = (
            AdaptedNetwork(base, name, add_adapter(base.model, base.text, name, shape.lora_rank))
            for name in ("student", "discriminator")
        )
        return student, AdaptedNetwork(base, None), critic
    reference, critic = (network_of(model_of(shape, dtype)) for _ in range(2))
    for other in (reference, critic):
        other.model.load_state_dict(base.model.state_dict())
    reference.model.requires_grad_(False)
    return base, reference, critic


def rewards_of(prompt: Prompt, answers: Sequence[tuple[int, ...]], *, shared: bool) -> list[RewardedGroup]:
    """One group of all answers; or, with the prompt repeated, a group for each answer with the same advantages."""
    half = len(answers) // 2
    rows = [
        Response(STUDENT if at < half else "teacher", "whole", ids, "stop", at % 2) for at, ids in enumerate(answers)
    ]
    group = score_group(rows, [1.0 if at < half else -1.0 for at in range(len(rows))])
    return [RewardedGroup(prompt, tuple(group))] if shared else [RewardedGroup(prompt, (row,)) for row in group]


def block_of(shape: Shape, tokens_per_pack: int) -> Ril:
    """Parameters of the step."""
    return Ril(
        steps=1,
        learning_rate=RATE,
        sampling=Sampling(max_tokens=shape.length),
        tokens_per_pack=tokens_per_pack,
        group=shape.rows // 2,
    )


def time_calls(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of `call` over `repeats` calls after two, and the GPU's peak memory in GiB (0 on CPU)."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2 + repeats):
        _synchronise()
        start = time.perf_counter()
        call()
        _synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:]), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def count_groups(groups: Sequence[RewardedGroup]) -> list[Group]:
    """The groups as a pack has them."""
    return [Group(group.prompt, tuple(row.response.token_ids for row in group.responses)) for group in groups]


def step_flops(shape: Shape, student: Network, groups: Sequence[Group]) -> float:
    """Operations of reference pass, forward and backward (no recomputation), vision tower once a group; two for each
    multiplication with its addition. A LoRA step has no gradient of frozen weights: 2 x forward in all for the
    layers.
    """
    tokens, scored = sum(group.tokens for group in groups), sum(group.scored_tokens for group in groups)
    layers = count_layer_weights(student)
    tower = sum(
        module.weight.numel()
        for part in student.family.get_vision_modules(student.model)
        for module in part.modules()
        if isinstance(module, nn.Linear)
    )
    pairs = sum(_visible_pairs(len(group.prompt.ids), [len(row) for row in group.responses]) for group in groups)
    patches = sum(len(group.prompt.pixels.values) for group in groups if group.prompt.pixels is not None)
    linear = 2.0 * layers * tokens + 2.0 * student.head.weight.numel() * scored
    attend = 4.0 * pairs * shape.hidden * shape.layers
    # passes: 1 of the reference, 1 forward, backward 2 (LoRA: 1 for the layers)
    return linear * (3 if shape.lora_rank else 4) + attend * 4 + 2.0 * tower * patches


def count_layer_weights(network: Network) -> int:
    """Weights of the linear layers of the language model, adapters left out."""
    return sum(module.weight.numel() for module in network.text.modules() if isinstance(module, nn.Linear))


def _visible_pairs(prompt: int, answers: Sequence[int]) -> float:
    return prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in answers)


def pack_of_groups(groups: Sequence[RewardedGroup]) -> Any:
    """All groups as one pack."""
    return next(make_packs(count_groups(groups), 10**9))


def peak_rate(name: str) -> float:
    """Dense bf16 operations a second of a GPU by the datasheet; 0 for one that is not listed."""
    return next((rate for part, rate in PEAKS.items() if part in name), 0.0)


def matmul_rate(size: int) -> float:
    """Operations a second of a square bf16 product here and now: what the datasheet's figure is worth."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / _seconds(lambda: left @ right)


def _seconds(call: Callable[[], object]) -> float:
    found = []
    for _ in range(8):
        _synchronise()
        start = time.perf_counter()
        call()
        _synchronise()
        found.append(time.perf_counter() - start)
    return statistics.median(found[3:])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def default_device(name: str) -> Iterator[None]:
    """New tensors are made on this device inside the block; packs and rewards are."""
    before = torch.get_default_device()
    torch.set_default_device(name)
    yield
    torch.set_default_device(before)

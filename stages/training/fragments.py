"""The state of training as named fragments: the same names and values under every ZeRO stage and number of ranks.

DeepSpeed keeps fp32 weights and AdamW's moments in flat tensors whose layout depends on the ZeRO stage and the number
of ranks. Here each rank lists which range of which parameter it holds, as views into those tensors: what is written
from one layout is read into any other (`stages/training/fragment_files.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from stages.training.ranks import get_ranks

WEIGHT, MEAN, SQUARE = "weight", "exp_avg", "exp_avg_sq"
VALUES = (WEIGHT, MEAN, SQUARE)  # what a fragment holds of each parameter, in fp32


@dataclass(frozen=True)
class Fragment:
    """A range of one trained parameter on this rank, as views of the tensors that the optimizer works on."""

    name: str  # of the parameter in the model
    start: int  # place of the first value in the flattened parameter
    values: Mapping[str, Tensor]  # by VALUES, each [length] fp32
    updates: Tensor  # [] fp32: AdamW's count of updates, shared by all fragments of a flat tensor

    @property
    def length(self) -> int:
        """Number of values of the parameter in this range."""
        return self.values[WEIGHT].numel()


class _Range(NamedTuple):
    """A range of a parameter, and where its values are in a tensor of the optimizer."""

    name: str
    start: int
    flat: Tensor
    offset: int
    length: int


def list_fragments(model: nn.Module, optimizer: Any) -> list[Fragment]:
    """Returns this rank's fragments of all trained parameters; without ZeRO, every rank has whole parameters.

    `optimizer` is what DeepSpeed returned for a torch AdamW. Moments that AdamW has not made yet are made, as zeros.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        found, adam = _iter_stage_3(named, optimizer), optimizer.optimizer
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        found, adam = _iter_stages_1_and_2(named, optimizer), optimizer.optimizer
    else:
        found, adam = (_Range(name, 0, one, 0, one.numel()) for name, one in named), optimizer
    return [_make_fragment(one, adam) for one in found]


def refresh_weights(optimizer: Any) -> None:
    """Copies the fp32 weights to the model after they were read; all ranks must call this together."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if kept := optimizer.persistent_parameters:  # small parameters, which every rank holds whole between steps
            kept[0].partition(kept)
            kept[0].all_gather(kept)
        optimizer.invalidate_secondary_tensor()  # the second copy of zero_hpz_partition_size
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.update_lp_params()


def _iter_stage_3(named: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[_Range]:
    """Each rank has the same number of values of every parameter; the last ranks' may reach over its end."""
    for name, parameter in named:
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = get_ranks().rank * length
        length = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if length > 0:
            yield _Range(name, start, optimizer.fp32_partitioned_groups_flat[group], offset, length)


def _iter_stages_1_and_2(named: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[_Range]:
    """A rank has a range of all parameters in a row, so of most parameters all or nothing."""
    for name, parameter in named:
        held: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if held is not None:
            flat = optimizer.single_partition_of_fp32_groups[held.param_group_index]
            own, place = held.lp_fragment_address, held.hp_fragment_address
            yield _Range(name, own.start, flat, place.start, place.numel)


def _make_fragment(one: _Range, adam: torch.optim.Optimizer) -> Fragment:
    state = adam.state[one.flat]
    if not state:  # as AdamW makes it at its first update
        state["step"] = torch.tensor(0.0)
        for name in (MEAN, SQUARE):
            state[name] = torch.zeros_like(one.flat)
    whole = {WEIGHT: one.flat.detach(), MEAN: state[MEAN], SQUARE: state[SQUARE]}
    views = {name: tensor.view(-1).narrow(0, one.offset, one.length) for name, tensor in whole.items()}
    return Fragment(one.name, one.start, views, state["step"])

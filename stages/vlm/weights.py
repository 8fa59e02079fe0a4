"""Checks of weights: a checkpoint that is not whole, or holds NaN or infinity, is neither loaded nor written.

transformers initializes missing tensors at random and only logs it; no library looks for values that are not finite.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_NAMED = 5  # tensors that a message names


class BadWeights(ValueError):
    """Weights are missing, unexpected, of another shape, or not finite; the message names the tensors."""


def find_broken_tensor(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns which of the named tensors is the first with NaN or infinity, and how many of its values are; or None."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            broken = int((~torch.isfinite(tensor.float())).sum())
            return f"tensor {name}: {broken:,} of {tensor.numel():,} values are NaN or infinite"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Returns whether all values of a tensor are finite; minimum and maximum tell it without another tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # there is no minimum of 8-bit floats
    return bool(torch.isfinite(torch.stack(torch.aminmax(wide.detach()))).all())


def check_finite(tensors: Mapping[str, Tensor], title: str) -> None:
    """Raises BadWeights when a tensor holds NaN or infinity; `title` says whose tensors they are."""
    if broken := find_broken_tensor(tensors.items()):
        raise BadWeights(
            f"{title}: {broken}; nothing is written. An earlier output and the last training checkpoint stay; lower "
            "the learning rate, or find the step that broke it in the history"
        )


def check_files(weights: Path) -> None:
    """Raises BadWeights when a safetensors file in the folder holds NaN or infinity; reads one tensor at a time."""
    if broken := find_broken_tensor(_iter_stored(weights)):
        raise BadWeights(f"{weights}: {broken}; restore the checkpoint, or make it again")


def _iter_stored(weights: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:  # type: ignore[no-untyped-call]
            for name in stored.keys():  # noqa: SIM118  (it is no dict, and cannot be iterated)
                yield name, stored.get_tensor(name)


def load_whole(kind: Any, weights: Path, dtype: torch.dtype) -> nn.Module:
    """Loads a model of class `kind` of transformers in eval mode.

    A head that is tied to the embeddings need not be stored. Raises BadWeights when other tensors are missing, unknown
    to the model or of another shape, or when a value is not finite.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would log a table of what the error below says
    try:
        model, found = kind.from_pretrained(
            weights,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logger.setLevel(level)
    shapes = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in found["mismatched_keys"]}
    _refuse(weights, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), shapes)
    if broken := find_broken_tensor(model.named_parameters()):
        check_files(weights)  # names the tensor as the file does
        raise BadWeights(f"{weights}: {broken}; restore the checkpoint, or make it again")
    return model.eval()  # type: ignore[no-any-return]


def load_state(module: nn.Module, stored: Mapping[str, Tensor], where: Path) -> None:
    """Loads `stored` into a module; raises BadWeights as `load_whole`. `where` is the file, for the message."""
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shapes = {
        name: (tuple(stored[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tensor.shape
    }
    _refuse(where, missing, unexpected, shapes)
    if broken := find_broken_tensor(stored.items()):
        raise BadWeights(f"{where}: {broken}; restore it, or make it again")
    module.load_state_dict(stored)


def _refuse(
    where: Path,
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raises BadWeights when any tensor is missing, unexpected, or has another shape (stored, wanted)."""
    other = [f"{name} {list(stored)}, not {list(wanted)}" for name, (stored, wanted) in sorted(shapes.items())]
    faults = [("misses", missing), ("has unknown", unexpected), ("has other shapes for", other)]
    if said := [f"{verb} {len(names)} tensors: {_list_names(names)}" for verb, names in faults if names]:
        raise BadWeights(
            f"{where}: the checkpoint {'; it '.join(said)}; it is not whole, or not of its config.json: restore it"
        )


def _list_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest

"""Counts the bytes of tensors in a forward and a backward pass, on the meta device or on a CPU."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traced(NamedTuple):
    """Bytes of two passes, weights left out."""

    kept: int  # by autograd after the forward pass
    forward: int  # alive at the peak of the forward pass
    backward: int  # alive at the peak of the backward pass


class AliveBytes(TorchDispatchMode):
    """Bytes of all storages on `device` that are made within the block and alive, and their peak.

    Those of `weights` don't count.
    """

    def __init__(self, device: str, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._device = device
        self._weights = {_identify(one) for one in weights}
        self._alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        done = function(*args, **(kwargs or {}))
        for one in tree_leaves(done):
            if not isinstance(one, Tensor) or one.device.type != self._device:
                continue
            if (place := _identify(one)) not in self._weights | self._alive.keys():
                storage = one.untyped_storage()
                self._alive[place] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, place)
        return done

    def _forget(self, place: int) -> None:
        self.now -= self._alive.pop(place)


def _identify(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def trace(model: nn.Module, compute: Callable[[], Tensor], grad: bool = True) -> Traced:
    """Returns the bytes of `compute()` and of its backward pass; each weight's gradient is dropped when it is there."""
    kept: dict[int, Any] = {}
    weights = {_identify(one) for one in model.parameters()}
    for one in model.parameters():
        if one.requires_grad:
            one.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))

    def keep(tensor: Tensor) -> Tensor:
        if (place := _identify(tensor)) not in weights:
            kept[place] = tensor.untyped_storage()
        return tensor

    device = next(model.parameters()).device.type
    with AliveBytes(device, model.parameters()) as alive, torch.set_grad_enabled(grad):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = compute().sum()
        forward, alive.peak = alive.peak, alive.now
        found = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        if grad:
            loss.backward()
    return Traced(found, forward, alive.peak)

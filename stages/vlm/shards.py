"""The frozen layers beside adapters, divided over the ranks: a layer is gathered while it computes.

ZeRO 3 of DeepSpeed can't do it: it belongs to one engine, and here the layers serve two, of student and discriminator,
and the reference without any. FSDP 2 of torch belongs to the layers and leaves adapters and their optimizers alone.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard_layers(text: nn.Module, device: torch.device) -> None:
    """Leaves on each rank its part of the frozen weights of each layer of a language model, on `device`.

    All ranks must then run the same passes in the same order. Adapters, also those that are added later, embeddings and
    the last norm stay whole on every rank.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)  # type: ignore[arg-type]
    layers: Any = text.layers
    for layer in layers:
        adapters = {weight for weight in layer.parameters() if weight.requires_grad}
        # Also after a pass without gradient: by itself FSDP keeps what it takes for the last layer.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    inside = {weight for layer in layers for weight in layer.parameters()}
    # Of the language model itself FSDP only needs the order of its layers, to gather the next one in time.
    fully_shard(text, mesh=mesh, ignored_params=set(text.parameters()) - inside)


def is_sharded(text: nn.Module) -> bool:
    """Returns whether weights of a model are divided over the ranks."""
    return any(hasattr(weight, "full_tensor") for weight in text.parameters())


def gather_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor whole; if it is divided, all ranks must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

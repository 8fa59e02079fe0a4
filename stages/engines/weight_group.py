"""How weights pass from the process that trains to the workers of vLLM: a process group, or memory of one device.

Both sides use this module. The same code runs over gloo on a CPU and over NCCL on GPUs. NCCL refuses two processes on
one GPU; there the receiver opens the sender's buffer itself: by its CUDA IPC handle, on a CPU as a mapped file. What
passes beside the weights is JSON, never a pickle.
"""

import base64
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing import reductions

_dist: Any = distributed  # its stubs lack the groups that are made without the global one
_reductions: Any = reductions

GROUP_SECONDS = 600.0  # for all to join, and for one bucket: a worker that has died ends its server before
# Of the arguments of torch's `rebuild_cuda_tensor`: what differs between two buffers. The others are types.
_NUMBERS = {"offset": 3, "size": 8, "storage_offset": 9, "counter_offset": 12, "synchronize": 14}
_HANDLES = {"memory": 7, "counter": 11, "event": 13}
_DEVICE = 6


def name_device(device: torch.device) -> str:
    """Returns a name of the device that is the same in all processes of this machine, whatever GPUs they see."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def open_group(device: torch.device, store: Path, place: int, size: int) -> Any:
    """Joins a group of `size` processes of this machine as number `place`; returns when all have joined.

    The processes meet in the file `store`, in a folder that only this user can enter. It is a group of its own, beside
    those of DeepSpeed and vLLM.
    """
    kind = _dist.ProcessGroupNCCL if device.type == "cuda" else _dist.ProcessGroupGloo
    options = kind.Options() if device.type == "cuda" else kind._Options()
    options._timeout = timedelta(seconds=GROUP_SECONDS)
    if device.type != "cuda":
        options._devices = [kind.create_device(hostname="127.0.0.1")]
    return kind(_dist.FileStore(str(store), size), place, size, options)


def broadcast_from_first(group: Any, buffer: Tensor) -> None:
    """Gives all processes of `group` the first one's `buffer`; returns when it has arrived."""
    group.broadcast([buffer], _dist.BroadcastOptions()).wait(timedelta(seconds=GROUP_SECONDS))
    synchronize(buffer.device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_buffers(device: torch.device) -> None:
    """Gives back the memory of buffers, also of those that other processes have opened and closed."""
    if device.type == "cuda":
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def make_buffer(device: torch.device, size: int, folder: Path) -> Tensor:
    """Returns a buffer [size], uint8, that other processes can open: on a GPU, or mapped from a file in `folder`."""
    if device.type == "cuda":
        return torch.empty(size, dtype=torch.uint8, device=device)
    return torch.from_file(str(folder / f"buffer-{size}"), shared=True, size=size, dtype=torch.uint8)


def describe_buffer(buffer: Tensor, folder: Path) -> dict[str, Any]:
    """Returns what a process on the same device needs to open `buffer` of `make_buffer`, as JSON."""
    if buffer.device.type != "cuda":
        return {"path": str(folder / f"buffer-{buffer.numel()}"), "size": buffer.numel()}
    given = _reductions.reduce_tensor(buffer)[1]
    numbers = {name: int(given[place]) for name, place in _NUMBERS.items()}
    handles = {name: base64.b64encode(given[place]).decode() for name, place in _HANDLES.items()}
    return {"numbers": numbers, "handles": handles, "size": buffer.numel()}


def open_buffer(described: Mapping[str, Any], device: torch.device) -> Tensor:
    """Returns another process's buffer [size], uint8: its own memory, not a copy."""
    size = described["size"]
    if device.type != "cuda":
        return torch.from_file(described["path"], shared=True, size=size, dtype=torch.uint8)
    given: list[Any] = [torch.Tensor, torch.Size([size]), (1,), 0, torch.storage.TypedStorage, torch.uint8]
    given += [0] * 9
    given[_DEVICE] = device.index or 0  # the receiver's own number of that GPU
    for name, place in _NUMBERS.items():
        given[place] = described["numbers"][name]
    for name, place in _HANDLES.items():
        given[place] = base64.b64decode(described["handles"][name])
    given[10], given[14] = False, bool(given[14])
    rebuilt: Tensor = _reductions.rebuild_cuda_tensor(*given)
    return rebuilt

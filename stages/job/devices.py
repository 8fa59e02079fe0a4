"""GPUs that a stage sees, by the names that CUDA_VISIBLE_DEVICES takes.

A rank sees its own GPU only, so that nothing of it lands on another one: a CUDA context alone takes 0.5 GB. The first
rank also starts engines on other GPUs, so it remembers what it saw before.
"""

import os
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALL_DEVICES = "RIL_ALL_DEVICES"  # environment variable: what a rank saw before it got its own GPU


def list_devices() -> list[str]:
    """Returns the GPUs of this stage in order; none on CPU.

    Counts them through NVML. `torch.cuda.is_available` would start CUDA, and CUDA_VISIBLE_DEVICES could not change any
    more.
    """
    if known := os.environ.get(ALL_DEVICES):
        return known.split(",")
    import torch

    count = torch.cuda.device_count()
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name] or [str(gpu) for gpu in range(count)]
    return visible[:count]


def list_own_devices() -> list[str]:
    """Returns the GPUs that this process itself computes on; those of the stage if it is no rank."""
    return os.environ[VISIBLE].split(",") if os.environ.get(ALL_DEVICES) else list_devices()


def name_devices(gpus: Sequence[int]) -> list[str]:
    """Returns the names of GPUs given by number; raises ValueError for one that the stage does not see."""
    devices = list_devices()
    if beyond := [gpu for gpu in gpus if gpu >= len(devices)]:
        raise ValueError(
            f"GPU {beyond[0]} is named in runtime, but this stage sees {len(devices)} ({', '.join(devices)}), numbered "
            "from 0; change runtime, or give the stage more GPUs"
        )
    return [devices[gpu] for gpu in gpus]


def make_rank_devices(gpu: str, devices: Sequence[str]) -> dict[str, str]:
    """Returns the environment of a rank on `gpu`, one of the stage's `devices`: it sees that GPU, as its first."""
    return {VISIBLE: gpu, ALL_DEVICES: ",".join(devices), "LOCAL_RANK": "0"}

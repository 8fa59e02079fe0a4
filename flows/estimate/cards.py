"""What a GPU or a CPU can do: memory, arithmetic, bandwidth. Of GPUs by data sheet, of CPUs by range."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from flows.estimate.amounts import Range
from stages.config.yaml import ParamsError

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """One GPU, or the CPU with the memory of the machine."""

    name: str
    memory: float  # bytes that programs have
    flops: Range  # bf16 a second, dense; of a CPU fp32, of all its cores, as a trainer gets it
    bandwidth: Range  # bytes a second
    gpu: bool = True


def _make_gpu(name: str, gibibytes: float, teraflops: Range, gigabytes: Range) -> Card:
    return Card(name, gibibytes * GIB, teraflops.scale(1e12), gigabytes.scale(1e9))


# What CUDA shows as total memory. A box of "24 GB" or "80 GB" may be any of several cards: the memory is that of the
# smallest one that a profile is for (RTX 4090: 23.6 GiB; A10G shows 22.2 and is not covered), the speed a range.
CARDS: Mapping[str, Card] = {
    "24": _make_gpu("24 GB", 23.6, Range(121, 165), Range(300, 1008)),  # L4 to RTX 4090
    "48": _make_gpu("48 GB", 44.4, Range(150, 362), Range(696, 864)),  # A40 to L40S
    "80": _make_gpu("80 GB", 79.1, Range(312, 989), Range(1935, 3350)),  # A100 to H100
    "141": _make_gpu("141 GB", 139.8, Range(989, 989), Range(4800, 4800)),
    "l4": _make_gpu("L4", 22.0, Range(121, 121), Range(300, 300)),
    "a10g": _make_gpu("A10G", 22.2, Range(70, 70), Range(600, 600)),
    "rtx4090": _make_gpu("RTX 4090", 23.6, Range(165, 165), Range(1008, 1008)),
    "a100": _make_gpu("A100 80 GB", 79.1, Range(312, 312), Range(1935, 2039)),
    "l40s": _make_gpu("L40S", 44.4, Range(362, 362), Range(864, 864)),
    "h100": _make_gpu("H100 80 GB", 79.1, Range(756, 989), Range(2000, 3350)),  # PCIe to SXM
    "h200": _make_gpu("H200", 139.8, Range(989, 989), Range(4800, 4800)),
}
_NAMES = {"l40s": "l40s", "h200": "h200", "h100": "h100", "a100": "a100", "a10g": "a10g", "4090": "rtx4090", "l4": "l4"}
_CORE_FLOPS = Range(4e9, 40e9)  # of one core in fp32: small matrices to large ones. Assumed


def find_card(name: str) -> Card:
    """Returns the card that `--card` names. Raises ParamsError with the known ones."""
    if name.lower() not in CARDS:
        raise ParamsError(f"--card is {name!r}, which is not known here; known: {', '.join(CARDS)}")
    return CARDS[name.lower()]


def read_gpus() -> list[Card]:
    """Returns the GPUs that nvidia-smi shows and CUDA_VISIBLE_DEVICES leaves; none without nvidia-smi.

    Torch is not asked: loading it takes longer than the whole plan.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    rows = [line.rsplit(",", 1) for line in told.stdout.splitlines() if "," in line] if told.returncode == 0 else []
    found = [_recognise(name.strip(), float(mebibytes) * (1 << 20)) for name, mebibytes in rows]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    chosen = [one for one in visible.split(",") if one]
    if all(one.isdigit() for one in chosen):
        return [found[int(one)] for one in chosen if int(one) < len(found)]
    return found[: len(chosen)]  # by UUID: as many, whichever they are


def _recognise(name: str, memory: float) -> Card:
    known = next((CARDS[key] for word, key in _NAMES.items() if word in name.lower()), None)
    if known is None:
        larger = [card for key, card in CARDS.items() if key.isdigit() and card.memory >= 0.9 * memory]
        known = larger[0] if larger else CARDS["141"]
    return Card(name, memory, known.flops, known.bandwidth)


def read_cpu() -> Card:
    """Returns this machine without its GPUs: all its memory, of control groups the smallest limit."""
    memory = float(psutil.virtual_memory().total)
    cores = len(os.sched_getaffinity(0))
    return Card(f"{cores} cores", memory, _CORE_FLOPS.scale(cores), Range(5e9, 40e9), gpu=False)


def name_machine() -> str:
    """Returns the name under which what was measured on this machine is kept."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "unnamed"

"""What a stage took of its machine: the peaks of its memory, for timing.json and the next plan."""

import resource
import sys
from pathlib import Path
from typing import Any

_KIB = 1024


def measure_peaks() -> dict[str, Any]:
    """Returns the largest memory of this process so far, of its largest child that has ended, and on GPUs.

    Bytes. Of a GPU it is what PyTorch held there, without the CUDA context and without engines in other processes.
    """
    found: dict[str, Any] = {
        "peak_host_bytes": _KIB * _read_high_water(),
        "peak_child_bytes": _KIB * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["peak_device_bytes"] = [
            torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count())
        ]
    return found


def _read_high_water() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

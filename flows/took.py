"""What a stage was to take and what it took of its machine, for timing.json, the report and the next plan."""

import resource
import sys
from pathlib import Path
from typing import Any

from flows.estimate.plan import plan_run
from stages.config.params import Params
from stages.config.yaml import ParamsError
from stages.job.job import Job

_KIB = 1024


def plan_or_explain(job: Job, params: Params) -> dict[str, Any]:
    """Returns what `ril plan` says of this run; where it cannot say anything, why (`unknown`).

    A stage runs all the same: the plan is a record here, `ril plan` is where it refuses.
    """
    try:
        return plan_run(job.root, job.store, params, job.name)
    except ParamsError as error:
        return {"unknown": str(error)}


def measure_taken(job: Job) -> dict[str, Any]:
    """Returns the largest memory of this process so far, of its largest child that has ended, and on GPUs; its out.

    Bytes. Of a GPU it is what PyTorch held there, without the CUDA context and without engines in other processes.
    """
    found: dict[str, Any] = {
        "peak_host_bytes": _KIB * _read_high_water(),
        "out_bytes": sum(file.stat().st_size for file in job.out.rglob("*") if file.is_file()),
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

"""Where a training process runs: its rank as launchers tell it, and the GPU that it gets.

torchrun and the DeepSpeed launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun has variables of
its own, which are mapped to these.
"""

import os
import re
from collections.abc import Mapping

from stages.config.placement import find_rank_gpus
from stages.config.runtime import Runtime
from stages.job.devices import list_devices, make_rank_devices, name_devices
from stages.job.failure import Failure

FIRST_PORT, PORTS = 20_000, 10_000  # of MASTER_PORT in a Slurm job: below the range of outgoing connections (32,768)
_FIRST_HOST = re.compile(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)")


def map_slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of torchrun for a task of `srun`; none outside of a job step with several tasks.

    Variables that are set stay, so MASTER_ADDR and MASTER_PORT can be given. SLURM_PROCID and SLURM_NTASKS are set in a
    batch script as well, where `dvc repro` is no task of several; SLURM_STEP_NUM_TASKS tells the two apart. The address
    is that of the step's first node, the port a function of job and step.
    """
    count = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if int(count) == 1 or "RANK" in environ:
        return {}
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    number = int(environ.get("SLURM_JOB_ID", "0")) * 7 + int(environ.get("SLURM_STEP_ID", "0"))
    mapped = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": count,
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "GROUP_RANK": environ.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": find_first_node(nodes),
        "MASTER_PORT": str(FIRST_PORT + number % PORTS),
    }
    return {name: value for name, value in mapped.items() if name not in environ}


def find_first_node(nodes: str) -> str:
    """Returns the first host of a Slurm node list: `node003` of `node[003-004,007],big1`.

    Raises Failure when there is none.
    """
    if (found := _FIRST_HOST.match(nodes)) is None:
        raise Failure(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host; set MASTER_ADDR to that of task 0")
    return found[1] + (found[2] or "") + found[3]


def assign_rank_devices(stage: str, runtime: Runtime) -> list[dict[str, str]]:
    """Returns for each rank on this machine the variables that name its GPU; nothing on CPU.

    Raises ValueError when the stage sees fewer GPUs than `runtime` gives to the ranks.
    """
    devices = list_devices()
    if not devices:
        return []
    return [make_rank_devices(name, devices) for name in name_devices(find_rank_gpus(runtime, stage))]


def find_launched_device(stage: str, runtime: Runtime) -> dict[str, str]:
    """Returns the variables that name the GPU of this process, which a launcher has started; nothing on CPU.

    On the first machine it is one of `runtime.rank_gpus`, if given, because engines have the others there; on further
    machines, and without, the one with the number LOCAL_RANK. A launcher that shows each process one GPU has chosen.
    Raises Failure when there is no such GPU.
    """
    devices, local = list_devices(), int(os.environ["LOCAL_RANK"])
    if not devices:
        return {}
    machine = os.environ.get("GROUP_RANK") or os.environ.get("CROSS_RANK") or "0"
    named = runtime.rank_gpus.get(stage, ()) if int(machine) == 0 else ()  # type: ignore[call-overload]
    gpus = [0] if len(devices) == 1 else list(named) or list(range(len(devices)))
    place = 0 if len(devices) == 1 else local
    if place >= len(gpus):
        raise Failure(
            f"{stage}: the launcher has started process {local + 1} on this machine, which has {len(gpus)} GPUs for "
            f"ranks; start fewer, or change runtime.rank_gpus.{stage}"
        )
    return make_rank_devices(name_devices([gpus[place]])[0], devices)

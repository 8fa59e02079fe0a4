"""GPUs: how many stages claim, how many there are, what they have free. Nothing of CUDA is started."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.checks.finding import Finding
from flows.environment import has_gpu
from stages.config.engines import GpuUse
from stages.config.params import Params
from stages.config.placement import LOOP, count_replica_gpus, find_gpu_use, find_rank_gpus
from stages.config.uses import list_used_models
from stages.job.devices import ALL_DEVICES, VISIBLE

_ASK_SECONDS = 10.0
_TRAINING = ("warm_start", "discriminator", LOOP)


def count_gpus() -> int:
    """Returns the GPUs that a stage would see, by their device files and CUDA_VISIBLE_DEVICES; 0 with a CPU build."""
    if known := os.environ.get(ALL_DEVICES):
        return len(known.split(","))
    if not has_gpu():
        return 0
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if (told := os.environ.get(VISIBLE)) is None:
        return there
    named = [name for name in told.split(",") if name]
    return len(named) if any(name.startswith("MIG") for name in named) else min(there, len(named))


def count_claimed_gpus(params: Params, run: str) -> tuple[int, str]:
    """Returns how many GPUs `run` needs to see by what params.yaml names, and the key that names most of them.

    0 where nothing names any: ranks and engines then take what there is, on a CPU none.
    """
    runtime, stage = params.runtime, run.partition("@")[0]
    claims = [(0, "")]
    if stage in _TRAINING and stage in runtime.rank_gpus:
        claims.append((max(find_rank_gpus(runtime, stage)) + 1, f"runtime.rank_gpus.{stage}"))
    for model in list_used_models(params, run):
        use = find_gpu_use(runtime, stage, model)
        if use is not None:
            claims.append((_count_needed(use), runtime.find_engine_key(stage, model)))
    return max(claims)


def _count_needed(use: GpuUse) -> int:
    if use.gpus:
        return max(use.gpus) + 1
    spanned = count_replica_gpus(use)
    return spanned if spanned > 1 else 0


def check_claims(params: Params, runs: Sequence[str]) -> Iterator[Finding]:
    """Yields the keys that claim GPUs which are not there, each with the runs that need them."""
    there = count_gpus()
    claims: dict[tuple[int, str], list[str]] = {}
    for run in runs:
        claims.setdefault(count_claimed_gpus(params, run), []).append(run)
    short = {claim: names for claim, names in claims.items() if claim[0] > there}
    if short:
        (needed, key), _ = max(short.items())
        names = [name for found in short.values() for name in found]
        remedy = f"run it where there are {needed}, or give {key} fewer (ril profile lists smaller set-ups)"
        yield Finding(
            "gpu",
            "missing",
            key,
            f"needs {needed} GPUs, and {_describe_count(there)}",
            remedy,
            tuple(dict.fromkeys(names)),
        )


def _describe_count(there: int) -> str:
    build = "" if there or has_gpu() else " that this installation can use"
    return f"there {'is 1' if there == 1 else f'are {there}' if there else 'is none'}{build}"


def describe_gpus() -> list[Finding]:
    """Returns the driver and each GPU with its free memory, as nvidia-smi tells; a note without GPUs."""
    if shutil.which("nvidia-smi") is None:
        return [Finding("gpu", "note", "", "no nvidia-smi: everything runs on the CPU", "")]
    fields = "index,name,driver_version,memory.free,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS)
    except subprocess.TimeoutExpired:
        return [
            Finding("gpu", "missing", "nvidia-smi", f"no answer in {_ASK_SECONDS:.0f} s", "look at the driver: dmesg")
        ]
    if told.returncode:
        said = " ".join((told.stdout or told.stderr).split())[:160]
        return [Finding("gpu", "missing", "nvidia-smi", said, "repair or install the driver")]
    found = [_describe_gpu(line.split(", ")) for line in told.stdout.splitlines() if line.count(", ") >= 4]
    if found and not has_gpu():
        found.append(
            Finding("gpu", "note", "", "the CPU build is installed, so none is used", "make install PROFILE=gpu")
        )
    return found


def _describe_gpu(fields: Sequence[str]) -> Finding:
    index, name, driver, free, total = fields[:5]
    return Finding("gpu", "fine", index, f"{name}, driver {driver}, {free} of {total} MiB free")

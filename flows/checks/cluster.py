"""Whether jobs can be submitted from here: the cluster's commands, and its controller."""

import shutil
from collections.abc import Iterator, Sequence

from flows.checks.finding import Finding
from flows.launcher import find_launcher
from flows.slurm.commands import COMMANDS, ControllerSilent, SlurmRefusal, ping_controller
from flows.slurm.request import count_job_gpus, submits
from stages.config.params import Params


def check_cluster(params: Params, runs: Sequence[str]) -> Iterator[Finding]:
    """Yields what is missing to submit those of `runs` that are jobs, and the GPUs that they ask for."""
    submitted = tuple(run for run in runs if submits(params, run))
    if not submitted:
        if find_launcher(params.runtime).kind != "local":
            yield Finding("slurm", "note", "runtime.launcher", "none of these stages loads a model, so none is a job")
        return
    if absent := [command for command in COMMANDS if shutil.which(command) is None]:
        yield Finding(
            "slurm",
            "missing",
            "runtime.launcher",
            f"is slurm, and {', '.join(absent)} is not here",
            "run it on a machine that submits jobs, or with ril run --on local",
            submitted,
        )
        return
    try:
        said = ping_controller()
    except (ControllerSilent, SlurmRefusal) as error:
        yield Finding("slurm", "missing", "scontrol ping", str(error), "see sinfo, or ril run --on local", submitted)
        return
    most = max(count_job_gpus(params, run) for run in submitted)
    yield Finding("slurm", "fine", "runtime.launcher", f"{len(submitted)} stages are jobs, GPUs: up to {most}; {said}")

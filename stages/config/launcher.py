"""The block `runtime.launcher`: where the process of a stage runs."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.config.block import Block

LauncherKind = Literal["local", "slurm"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:@+-]{0,199}$")]
# Options of sbatch that say where a job runs and what it gets. Others are set here, or would run something else.
SBATCH_OPTIONS = (
    *("begin", "constraint", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu"),
    *("cpus-per-task", "dependency", "exclude", "exclusive", "extra-node-info", "gpu-bind", "gpu-freq", "hint"),
    *("licenses", "mail-type", "mail-user", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "nice"),
    *("nodelist", "oversubscribe", "prefer", "priority", "qos", "reservation", "sockets-per-node", "switches"),
    *("thread-spec", "threads-per-core", "time-min", "tmp", "wckey"),
)
# What people look for here and find elsewhere.
_ELSEWHERE = {
    "partition": "runtime.launcher.partition",
    "account": "runtime.launcher.account",
    "time": "runtime.launcher.hours",
    "gres": "runtime.launcher.gpu_type, and the GPUs that runtime names",
    "gpus": "the GPUs that runtime names (runtime.gpus, rank_gpus, gpus of an engine)",
    "gpus-per-node": "the GPUs that runtime names (runtime.gpus, rank_gpus, gpus of an engine)",
    "nodes": "srun by hand (docs/clusters.md): a stage that is submitted runs on one machine",
    "signal": "runtime.grace_seconds",
    "requeue": "runtime.launcher.attempts",
}
_OPTION = re.compile(r"--([a-z][a-z-]*)(=[^\x00-\x1f\x7f]{1,1000})?")


def check_sbatch_arguments(arguments: Sequence[str]) -> Sequence[str]:
    """Returns `arguments`; raises ValueError with the first one that is not passed on, and the remedy."""
    for argument in arguments:
        found = _OPTION.fullmatch(argument)
        if found is not None and found[1] in SBATCH_OPTIONS:
            continue
        name = found[1] if found else argument.lstrip("-").partition("=")[0]
        if name in _ELSEWHERE:
            raise ValueError(f"{argument[:80]!r} is not passed on; set {_ELSEWHERE[name]} instead")
        raise ValueError(
            f"{argument[:80]!r} is not passed on to sbatch; write --OPTION or --OPTION=VALUE with one of: "
            f"{', '.join(SBATCH_OPTIONS)}"
        )
    return arguments


class Launcher(Block):
    """Where stages run: on the machine where dvc runs, or as jobs of a cluster."""

    kind: LauncherKind = Field(
        "local", description="Where stages run: local (where dvc runs) or slurm (a job for each); ril run --on."
    )
    stages: Literal["models", "all"] = Field(
        "models",
        description="Which stages are jobs: models (those that load a model on the machine where they run) or all.",
    )
    partition: Name | None = Field(None, description="Slurm partition; default: the cluster's.")
    account: Name | None = Field(None, description="Slurm account; default: the user's.")
    hours: float = Field(
        0.0, ge=0, le=10_000, description="Time limit of a job, after which it is submitted again; 0: the partition's."
    )
    gpu_type: Name | None = Field(None, description="Type of the GPUs as the cluster names it, such as h100.")
    arguments: Annotated[tuple[str, ...], AfterValidator(check_sbatch_arguments)] = Field(
        (), strict=False, description="Additional options of sbatch, such as --mem=200G or --cpus-per-gpu=12."
    )
    attempts: int = Field(
        3,
        ge=0,
        le=1000,
        description="How often a stage is submitted again after its job was ended by Slurm (time limit, pre-emption, "
        "a node that failed) without any progress since it was submitted; progress starts the count anew.",
    )

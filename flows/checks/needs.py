"""All that stages need, looked at at once: what `ril doctor`, `ril run`, the first stage of a dvc and forms ask."""

import time
from collections.abc import Sequence
from pathlib import Path

from flows.checks.cluster import check_cluster
from flows.checks.data import check_user_files
from flows.checks.distillation import check_distillation
from flows.checks.endpoints import check_keys
from flows.checks.finding import Finding
from flows.checks.folders import check_writing
from flows.checks.gpus import check_claims, count_claimed_gpus, count_gpus
from flows.checks.machine import check_compiler, check_repository
from flows.checks.models import check_models
from flows.checks.packages import check_optional_packages
from flows.slurm.request import submits
from stages.config.params import Params
from stages.job.job import Job

PREFLIGHT_SECONDS = 4.0  # for the contents of checkpoints; a file of 30 MB takes 0.2 s
LEFT_OPEN = (
    "not known before a run: whether endpoints answer and take the key, whether GPU memory suffices, whether rows of "
    "data are usable (ril data check)"
)


def check_needs(root: Path, params: Params, jobs: Sequence[Job], seconds: float = PREFLIGHT_SECONDS) -> list[Finding]:
    """Returns what `jobs` need and whether it is there. Loads no model, asks no network.

    After `seconds` the contents of further checkpoints are not looked into, which is said.
    """
    end = time.monotonic() + seconds
    runs = [job.name for job in jobs]
    here = [run for run in runs if not submits(params, run)]  # what GPUs a job needs, the cluster checks
    return [
        *check_repository(root),
        *check_writing(jobs),
        *check_user_files(params, jobs),
        *check_models(params, list(jobs), end),
        *check_distillation(params, list(jobs)),
        *check_keys(params, runs),
        *check_claims(params, here),
        *check_cluster(params, runs),
        check_compiler(explain_compiler(params, here)),
        *check_optional_packages(params, runs),
    ]


def explain_compiler(params: Params, runs: Sequence[str]) -> str:
    """Returns who compiles while `runs` run, "" if nobody does."""
    if params.runtime.group_attention == "flex":
        return "runtime.group_attention: flex"
    if count_gpus() or any(count_claimed_gpus(params, run)[0] for run in runs):
        return "vLLM on GPUs (triton)"
    return ""

"""Where stages run: on this machine, or as jobs of a cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from flows.environment import LAUNCHER
from stages.config.launcher import Launcher, LauncherKind
from stages.config.runtime import Runtime
from stages.config.yaml import ParamsError

JOB_FOLDER = "RIL_JOB"  # in the environment of a stage that runs as a job: the folder that it shares with its submitter
# After `runtime.grace_seconds`: for a request to stop to reach a job, and for the cluster to end what does not obey.
CANCEL_SECONDS = 60.0


def find_launcher(runtime: Runtime) -> Launcher:
    """Returns `runtime.launcher`, with the kind that RIL_LAUNCHER names, if it is set. Raises ParamsError."""
    kind = os.environ.get(LAUNCHER)
    return runtime.launcher.model_copy(update={"kind": check_kind(kind, LAUNCHER)}) if kind else runtime.launcher


@contextmanager
def running_on(kind: str | None) -> Iterator[None]:
    """For this block stages that are started run where `kind` says, whatever `runtime.launcher.kind` is; None: there.

    Raises ParamsError for another kind than there is.
    """
    before = os.environ.get(LAUNCHER)
    if kind is not None:
        os.environ[LAUNCHER] = check_kind(kind, "--on")
    try:
        yield
    finally:
        os.environ.pop(LAUNCHER, None) if before is None else os.environ.update({LAUNCHER: before})


def check_kind(kind: str, key: str) -> LauncherKind:
    """Returns `kind`, which `key` has named. Raises ParamsError when there is no such launcher."""
    for known in get_args(LauncherKind):
        if kind == known:
            return known
    raise ParamsError(f"{key} is {kind[:80]!r}; take one of {', '.join(get_args(LauncherKind))}")


def is_job() -> bool:
    """Whether this process is a stage inside the job that was submitted for it."""
    return JOB_FOLDER in os.environ


def count_grace_seconds(runtime: Runtime) -> float:
    """Returns the seconds from a request to stop a stage until it is killed: more for one that has to end a job."""
    return runtime.grace_seconds + (0.0 if find_launcher(runtime).kind == "local" else CANCEL_SECONDS)

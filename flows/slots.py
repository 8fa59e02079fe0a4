"""So many stages on the GPUs of this machine at a time; a further one waits, and says for whom.

A slot is a lock file in the store, which experiments and copies of a project share; the kernel frees it when its holder
dies.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import Timeout

from flows.launcher import is_job
from stages.config.runtime import Runtime
from stages.job.job import Job
from stages.job.lock_files import hold_lock, read_holder

_POLL_SECONDS = 0.5
_LIMIT_HOURS = 14 * 24.0  # as long as a run of dvc may take


class NoSlot(RuntimeError):
    """The GPUs were taken for as long as anybody waits."""


@contextmanager
def hold_gpu_slot(job: Job, limit_hours: float = _LIMIT_HOURS) -> Iterator[None]:
    """For this block the stage holds one of `runtime.gpu_slots`; nothing where that is 0, where the stage loads no
    model, and in a job, which has GPUs of its own.

    Raises NoSlot after `limit_hours`.
    """
    count = job.block(Runtime).gpu_slots
    if count == 0 or not job.definition.loads_model or is_job():
        yield
        return
    folder = job.store / "slots"
    paths = [folder / f"{socket.gethostname()}-gpu-{number}" for number in range(count)]
    with _wait_for_slot(paths, f"{job.name}, process {os.getpid()}", job.progress.say, limit_hours):
        yield


def _wait_for_slot(
    paths: Sequence[Path], holder: str, say: Callable[[str], None], limit_hours: float
) -> AbstractContextManager[object]:
    end, said = time.monotonic() + limit_hours * 3600, ""
    while True:
        holders = []
        for path in paths:
            try:
                return hold_lock(path, holder)
            except Timeout:
                holders.append(read_holder(path) or "")
        if (now := " and ".join(holders)) != said:
            said = now
            say(f"waiting for a GPU slot (runtime.gpu_slots is {len(paths)}): {now}")
        if time.monotonic() > end:
            raise NoSlot(f"no GPU slot in {limit_hours:g} hours; held by {now}")
        time.sleep(_POLL_SECONDS)

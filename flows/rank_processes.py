"""Processes that train along with a stage: the stage's own process is the first rank and starts, watches and ends the
others.

A rank that dies ends the stage, and no rank outlives it: it kills them when it ends, and the kernel kills them when it
is killed. SIGTERM and Ctrl-C are the first rank's business; after the step all of them stop together (`TrainingState`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

from stages.config.runtime import Runtime
from stages.config.table import STAGES
from stages.engines.supervisor import signal_on_parent_death
from stages.job.job import Job
from stages.job.progress import Progress
from stages.job.stop import STOP

_FIRST = "RIL_FIRST_RANK"  # process id of the first rank, in the environment of those that it started
_POLL_SECONDS = 0.2
_LAST_WORDS_SECONDS = 10.0  # for the first rank to fail by itself when another has died
_END_SECONDS = 60.0  # for the others to end by themselves when all the work is done


class SilentProgress(Progress):
    """Of a rank that is not the first: it does the same as the first, which says so."""

    def say(self, text: str) -> None:
        """Says nothing."""

    def track(self, items: Any, description: str, total: int | None = None, done: int = 0) -> Iterator[Any]:
        """Yields `items`."""
        yield from items


def is_launched() -> bool:
    """Whether a launcher (torchrun, deepspeed) has started this process among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process trains along with another one's stage."""
    return is_launched() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def join_ranks(job: Job) -> Iterator[None]:
    """For this block the ranks of a training stage are one group: those that a launcher started, or `runtime.processes`
    here.

    Raises what the block raises, after the other ranks have ended. When one of them dies, the stage ends with exit code
    1.
    """
    runtime = job.block(Runtime)
    count = runtime.processes
    if not job.definition.ranks or (count == 1 and not is_launched()):
        yield
        return
    if is_launched():
        from stages.training.ranks import join

        join()
        _tell(job)
        yield
        return
    from stages.training.ranks import Rendezvous

    meeting = Rendezvous(count)
    job.progress.say(f"{job.name}: trains in {count} processes, ZeRO {runtime.zero_stage}")
    others = RankProcesses(job.name, [_start(job.stage, meeting.make_environment(rank)) for rank in range(1, count)])
    try:
        meeting.join()
        _tell(job)
        yield
        others.wait()
    finally:
        others.end()


def _start(stage: str, place: dict[str, str]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **place, _FIRST: str(os.getpid())}
    environment.pop("DVC_STAGE", None)  # not dvc's child, but this process's
    return subprocess.Popen([sys.executable, "-m", "flows.run", stage], env=environment, stdin=subprocess.DEVNULL)


def _tell(job: Job) -> None:
    """Hands the job to the other ranks."""
    from stages.training.ranks import get_ranks

    get_ranks().broadcast(lambda: replace(job, progress=SilentProgress()))


class RankProcesses:
    """The ranks that this process has started."""

    def __init__(self, name: str, processes: list["subprocess.Popen[bytes]"]) -> None:
        self._name, self._processes = name, processes
        self._told: set[int] = set()  # ranks whose failure was said
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._watch_ranks, daemon=True, name="watch over ranks")
        self._watch.start()

    def _watch_ranks(self) -> None:
        """Ends this process when a rank has failed: it may be waiting for that rank inside a library, deaf to
        exceptions.
        """
        while not self._ending.wait(_POLL_SECONDS):
            if self._has_failed():
                if self._ending.wait(_LAST_WORDS_SECONDS):
                    return
                self.end()
                sys.stderr.flush()
                os._exit(1)

    def _has_failed(self) -> bool:
        """Whether any has; says which, once."""
        for rank, process in enumerate(self._processes, 1):
            if process.poll() and rank not in self._told:
                self._told.add(rank)
                print(f"error: {self._name}: rank {rank} ended with exit code {process.returncode}", file=sys.stderr)
        return bool(self._told)

    def wait(self) -> None:
        """Returns when all have ended well, or after a minute."""
        limit = time.monotonic() + _END_SECONDS
        while time.monotonic() < limit and any(process.poll() is None for process in self._processes):
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """Kills those that are left; returns when they are gone."""
        self._ending.set()
        self._has_failed()  # a failure here may come of theirs, and be faster than the watch
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


# --- the other side ---------------------------------------------------------------------------------------------------


def follow(stage: str) -> int:
    """Trains along with the first rank until its stage is done; this process's exit code."""
    _die_with_first()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _remember)
    if stage not in STAGES or not STAGES[stage].ranks:
        print(f"rank {os.environ['RANK']}: stage {stage} does not train in several processes", file=sys.stderr)
        return 0
    from flows.environment import prepare

    prepare()
    import importlib

    from stages.training.ranks import join

    job = join().broadcast(_make_no_job)
    with contextlib.suppress(SystemExit):  # all ranks stop together; the exit code of the first is the stage's
        try:
            importlib.import_module(f"stages.{stage}").run(job)
        except (
            ValueError,
            FileNotFoundError,
        ) as error:  # the first rank says the same; one line tells where it differs
            print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # libraries that tidy up would wait for the first rank, which waits for this one


def _make_no_job() -> Job:
    raise RuntimeError("this rank asked itself for the job that the first rank has")


def _die_with_first() -> None:
    """The kernel ends this process with the one that started it, whatever ends that one: it holds a GPU, and no state
    to save.
    """
    signal_on_parent_death(signal.SIGKILL)
    if (first := os.environ.get(_FIRST)) and os.getppid() != int(first):
        os._exit(1)  # it died just before


def _remember(number: int, frame: FrameType | None) -> None:
    STOP.code = STOP.code or 128 + number

"""Processes that train along with a stage: the stage's own process is the first rank and starts, watches and ends the
others.

A rank that dies or stands still ends the stage, and no rank outlives it: it kills them when it ends, and the kernel
kills them when it is killed. SIGTERM and Ctrl-C are the first rank's business; after the step all of them stop together
(`TrainingState`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from flows.rank_places import assign_rank_devices, find_launched_device
from flows.rank_watch import clear_reports, watch_ranks
from stages.config.params import load_params
from stages.config.runtime import Runtime
from stages.config.table import STAGES
from stages.engines.supervisor import signal_on_parent_death
from stages.job.failure import Failure
from stages.job.job import Job
from stages.job.progress import Progress
from stages.job.silence import Silence, is_stopped
from stages.job.stop import STOP

if TYPE_CHECKING:
    from stages.training.ranks import Ranks

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
    """Whether a launcher (torchrun, deepspeed, srun) has started this process among others."""
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
    count = runtime.count_ranks(job.stage)
    if not job.definition.ranks:
        yield
        return
    if is_launched():
        from stages.training.ranks import join

        os.environ.update(find_launched_device(job.stage, runtime))
        with _attend(job, join(), _end_here):
            yield
        return
    devices = assign_rank_devices(job.stage, runtime)
    if count == 1:
        os.environ.update(devices[0] if devices else {})
        yield
        return
    from stages.training.ranks import Rendezvous

    meeting = Rendezvous(count, devices)
    job.progress.say(f"{job.name}: trains in {count} processes, ZeRO {runtime.zero_stage}")
    others = RankProcesses(job, [_start(job.stage, meeting.make_environment(rank)) for rank in range(1, count)])
    try:
        with _attend(job, meeting.join(), others.end_stage):
            yield
        others.wait()
    finally:
        others.end()


def _start(stage: str, place: dict[str, str]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **place, _FIRST: str(os.getpid())}
    environment.pop("DVC_STAGE", None)  # not dvc's child, but this process's
    return subprocess.Popen([sys.executable, "-m", "flows.run", stage], env=environment, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def _attend(job: Job, ranks: "Ranks", end: Callable[[str], None]) -> Iterator[None]:
    """Hands the job to the other ranks; for this block they are watched."""
    from stages.training.ranks import limit_waits

    clear_reports(job)
    ranks.broadcast(lambda: replace(job, progress=SilentProgress()))
    runtime = job.block(Runtime)
    limit_waits(timedelta(minutes=runtime.stuck_minutes), timedelta(minutes=runtime.first_rank_minutes))
    with watch_ranks(job, ranks.rank, lambda reason: end(f"{reason}; {describe_kept(job)}")):
        yield


def _end_here(reason: str) -> None:
    """Ends this process; the launcher ends the others."""
    print(f"error: {reason}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def describe_kept(job: Job) -> str:
    """What a next run of the stage starts from."""
    done = sorted(path.parent for path in job.run_folder.glob("step_*/DONE")) if job.run_folder else []
    return f"the last checkpoint is kept: {done[-1]}" if done else "no checkpoint was written yet"


class RankProcesses:
    """The ranks that this process has started."""

    def __init__(self, job: Job, processes: list["subprocess.Popen[bytes]"]) -> None:
        self._name, self._processes = job.name, processes
        self._stopped_seconds, self._describe_kept = job.block(Runtime).stopped_seconds, partial(describe_kept, job)
        self._told: set[int] = set()  # ranks whose failure was said
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._watch_ranks, daemon=True, name="watch over ranks")
        self._watch.start()

    def _watch_ranks(self) -> None:
        """Ends this process when a rank has failed: it may be waiting for that rank inside a library, deaf to
        exceptions.
        """
        silence = [Silence() for _ in self._processes]
        while not self._ending.wait(_POLL_SECONDS):
            for rank, process in enumerate(self._processes, 1):  # also while it starts, before it can report
                seconds = silence[rank - 1].measure(True if is_stopped(process.pid) else object())
                if is_stopped(process.pid) and seconds >= self._stopped_seconds:
                    self.end_stage(
                        f"{self._name}: rank {rank} (process {process.pid}) has been stopped (SIGSTOP) for "
                        f"{seconds:.0f} s; {self._describe_kept()}"
                    )
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

    def end_stage(self, reason: str) -> None:
        """Ends this process and all others, because a rank stands still and nobody can wait for it."""
        print(f"error: {reason}", file=sys.stderr)
        sys.stderr.flush()
        self.end()
        os._exit(1)

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

    from stages.training.ranks import join, limit_waits

    try:
        if _FIRST not in os.environ:  # a launcher started this process and does not know which GPUs are the ranks'
            os.environ.update(find_launched_device(stage, load_params(Path.cwd() / "params.yaml").runtime))
        ranks = join()
        job = ranks.broadcast(_make_no_job)
        runtime = job.block(Runtime)
        limit_waits(timedelta(minutes=runtime.stuck_minutes), timedelta(minutes=runtime.first_rank_minutes))
        with watch_ranks(job, ranks.rank, lambda reason: _end_first(f"{reason}; {describe_kept(job)}")):
            importlib.import_module(f"stages.{stage}").run(job)
    except SystemExit:
        pass  # all ranks stop together; the exit code of the first is the stage's
    except (ValueError, FileNotFoundError, Failure) as error:  # the first rank may say the same
        print(f"error: rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # libraries that tidy up would wait for the first rank, which waits for this one


def _end_first(reason: str) -> None:
    """Ends the first rank, which stands still, and with it all that it has started."""
    print(f"error: {reason}", file=sys.stderr)
    sys.stderr.flush()
    if first := os.environ.get(_FIRST):
        os.kill(int(first), signal.SIGKILL)  # a process that is stopped hears nothing else
    os._exit(1)


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

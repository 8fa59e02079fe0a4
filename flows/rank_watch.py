"""Notices a rank that stands still: stopped by a signal, or hanging while the others wait for it.

A rank that dies is noticed by its process's end (`rank_processes.py`). One that is stopped (SIGSTOP) or hangs is alive,
and the others would wait for it inside a collective operation. Each rank writes how far it is and where it waits to

    <training state>/ranks/<rank>.json

and looks at the others. Long work is no reason to end: a rank counts as hanging only when all others wait for it and it
has made no progress for `runtime.stuck_minutes`. The first rank works alone while it samples, judges and validates; its
engines have limits of their own, and it counts as hanging after `runtime.first_rank_minutes`.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.config.runtime import Runtime
from stages.job.files import write_text
from stages.job.job import Job
from stages.job.silence import Silence, is_stopped, repeat_work

_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class RankReport:
    """What a rank says of itself."""

    host: str
    process: int
    meetings: int  # collective operations that it has entered or left
    waits: bool  # whether it is inside of one


class RankWatch:
    """Compares the reports of all ranks, and measures how long each has stood still."""

    def __init__(self, stopped_seconds: float, stuck_seconds: float, first_seconds: float) -> None:
        """`first_seconds` is the limit of the first rank in place of `stuck_seconds`."""
        self._stopped_seconds, self._stuck_seconds, self._first_seconds = stopped_seconds, stuck_seconds, first_seconds
        self._awake: dict[int, Silence] = {}
        self._progress: dict[int, Silence] = {}

    def find_still(self, reports: Mapping[int, RankReport]) -> tuple[int, str] | None:
        """Returns a rank that stands still, with the reason; None when there is none."""
        here = socket.gethostname()
        idle = {
            rank: self._progress.setdefault(rank, Silence()).measure((report.meetings, report.waits))
            for rank, report in reports.items()
        }
        for rank, report in reports.items():
            stopped = report.host == here and is_stopped(report.process)
            # a value that never repeats while the process runs
            seconds = self._awake.setdefault(rank, Silence()).measure(True if stopped else object())
            if stopped and seconds >= self._stopped_seconds:
                return rank, f"has been stopped (SIGSTOP) for {seconds:.0f} s"
        for rank, report in reports.items():
            others = [other for number, other in reports.items() if number != rank]
            waited_for = bool(others) and not report.waits and all(other.waits for other in others)
            if waited_for and idle[rank] >= (self._stuck_seconds if rank else self._first_seconds):
                return rank, f"has made no progress for {idle[rank]:.0f} s while all others wait for it"
        if reports and all(report.waits for report in reports.values()) and min(idle.values()) >= self._stuck_seconds:
            last = min(reports, key=lambda rank: reports[rank].meetings)
            return last, f"waits like all others for {min(idle.values()):.0f} s, and is the farthest behind"
        return None


@contextlib.contextmanager
def watch_ranks(job: Job, rank: int, end: Callable[[str], None]) -> Iterator[None]:
    """For this block the rank reports and looks at the others; `end` gets a line that names one that stands still.

    The first rank looks at all others, the second at the first. Nothing is watched where no training state is kept.
    """
    if job.run_folder is None:
        yield
        return
    runtime, folder = job.block(Runtime), job.run_folder / "ranks"
    watch = RankWatch(runtime.stopped_seconds, 60 * runtime.stuck_minutes, 60 * runtime.first_rank_minutes)

    def look() -> bool:
        with contextlib.suppress(OSError):  # a full disk: training itself says so when it saves
            write_report(folder, rank)
        reports = read_reports(folder)
        still = watch.find_still(reports)
        if still is None or still[0] == rank or rank != (0 if still[0] else min(set(reports) - {0})):
            return True
        number, reason = still
        place = f"process {reports[number].process} on {reports[number].host}"
        end(f"{job.name}: rank {number} ({place}) {reason}")
        return False

    write_report(folder, rank)
    with repeat_work(look, min(_LOOK_SECONDS, runtime.stopped_seconds / 4), "watch over ranks that stand still"):
        yield


def clear_reports(job: Job) -> None:
    """Removes the reports of an earlier run."""
    if job.run_folder is not None:
        shutil.rmtree(job.run_folder / "ranks", ignore_errors=True)


def write_report(folder: Path, rank: int) -> None:
    """Writes how far this process is."""
    from stages.training.ranks import MEETINGS

    report = RankReport(socket.gethostname(), os.getpid(), MEETINGS.count, MEETINGS.inside)
    write_text(folder / f"{rank}.json", json.dumps(asdict(report)))


def read_reports(folder: Path) -> dict[int, RankReport]:
    """Returns the reports of all ranks by rank."""
    found = {}
    for file in folder.glob("[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # being replaced on a network file system
            found[int(file.stem)] = RankReport(**json.loads(file.read_text(encoding="utf-8")))
    return found

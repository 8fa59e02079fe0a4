"""How a stage's process ends when it is asked to: SIGTERM, Ctrl-C, or its dvc dying."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stages.engines.supervisor import signal_on_parent_death
from stages.job.spending import BUDGET_CODE
from stages.job.stop import STOP

_SAME_STOP_SECONDS = 5.0  # a signal to the group comes twice: once sent, once more because dvc died of it
_RAISE_AGAIN_SECONDS = 0.5
_first: list[float] = []  # when the first request came


def end_well_on_signals() -> None:
    """Makes SIGTERM and Ctrl-C exceptions, so that engines are shut down and files closed; a later one ends at once.

    In a training loop the exception waits for the end of the step, so that a checkpoint can be written. C code that is
    being imported may drop an exception (seen in one of three kills at that moment), so it is raised again as long as
    none is on its way.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.signal(signal.SIGXCPU, _stop_at_cap)


@contextmanager
def keep_own_handler() -> Iterator[None]:
    """Prefect's handler of SIGTERM knows nothing of training steps; for this block ours is back in its place."""
    theirs = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, theirs)


def cancel_alarms() -> None:
    """For the end of the process: nothing is raised again, since an exception in what runs at exit is a traceback."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_at_exit)


def _stop_at_exit(number: int, frame: FrameType | None) -> None:
    """The process ends anyway; a request long after the first one ends it at once."""
    _first.append(time.monotonic())
    if _first[-1] - _first[0] > _SAME_STOP_SECONDS:
        os._exit(128 + number)


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when dvc dies; else a killed dvc leaves an orphan that goes on writing.

    Ends at once where dvc has died before: until here a process takes a second, on a busy machine more. An orphan's new
    parent is of another session.
    """
    parent = os.getppid()
    signal_on_parent_death(signal.SIGTERM)
    if os.getppid() != parent or os.getsid(parent) != os.getsid(0):
        raise SystemExit(128 + signal.SIGTERM)


def _stop_at_cap(number: int, frame: FrameType | None) -> None:
    """The cap on GPU hours is used up (`flows/gpu_hours.py`): a training step may take its time, others end now."""
    STOP.code = STOP.code or BUDGET_CODE
    if not (STOP.awaited or STOP.saving or _is_ending(sys.exception())):
        raise SystemExit(STOP.code)


def _stop(number: int, frame: FrameType | None) -> None:
    repeated = bool(_first)
    if repeated and number != signal.SIGALRM and time.monotonic() - _first[0] > _SAME_STOP_SECONDS:
        os._exit(128 + number)
    _first.append(time.monotonic())
    if not repeated:
        STOP.ask(128 + number)
    if STOP.awaited and not repeated:
        seconds = STOP.step_seconds
        print(f"stopping after this step, or in {seconds:.0f} s; once more ends at once", file=sys.stderr)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif STOP.saving:
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)  # in case nothing ends the process afterwards
    elif not _is_ending(sys.exception()) and (number == signal.SIGALRM or not STOP.awaited):
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        raise SystemExit(STOP.code)


def _is_ending(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is the end of this process on its way through `finally` blocks."""
    return error is not None and (isinstance(error, SystemExit) or _is_ending(error.__context__))

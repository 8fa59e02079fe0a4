"""Time limits of waits: for how long something has shown no progress, and the end of a process that shows none."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAUSE_SECONDS = 30.0  # whoever looks less often than this stood still itself (Ctrl-Z, a suspended or starved machine)
_NOTHING = object()


class Silence:
    """For how long a value has been the same, by the clock of this process.

    Times in which this process itself stood still do not count: what it watches had no chance to be seen.
    """

    def __init__(self) -> None:
        self._value: Any = _NOTHING
        self._since = self._looked = time.monotonic()

    def measure(self, value: Any) -> float:
        """Returns the seconds for which `value` has been the same; call it more often than every `PAUSE_SECONDS`."""
        now = time.monotonic()
        if value != self._value or now - self._looked > PAUSE_SECONDS:
            self._value, self._since = value, now
        self._looked = now
        return now - self._since


@contextlib.contextmanager
def repeat_work(work: Callable[[], bool], seconds: float, name: str) -> Iterator[None]:
    """For this block a thread calls `work` at once and then every `seconds`, until it returns False.

    At the end of the block the thread is waited for `seconds`, no longer: it may hang in a file system.
    """
    ended = threading.Event()

    def run() -> None:
        while work() and not ended.wait(seconds):
            pass

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(seconds)


def is_stopped(process: int) -> bool:
    """Returns whether the kernel has stopped that process of this machine (SIGSTOP, Ctrl-Z)."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False  # it has ended


class WorkLimit:
    """Ends this process when a piece of work in it takes longer than `seconds`.

    C code that never returns can't be interrupted by an exception, so the process ends at once, with exit code 1 and a
    line. What it had on disk before is kept.
    """

    def __init__(self, seconds: float, explain: str) -> None:
        """`explain` says what has not ended then."""
        self._seconds, self._explain = seconds, explain
        self._begun, self._ended = 0, 0
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watch over work").start()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Marks one piece of work."""
        self._begun += 1
        try:
            yield
        finally:
            self._ended = self._begun

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _watch(self) -> None:
        silence = Silence()
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            seconds = silence.measure((self._begun, self._ended))
            if self._begun != self._ended and seconds > self._seconds:
                print(f"error: {self._explain} for {seconds:.0f} s; it hangs, so this process ends", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)

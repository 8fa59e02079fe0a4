"""Requests to stop (SIGTERM, Ctrl-C) during training: the loop finishes its step and writes a checkpoint first."""

import contextlib
import math
import time
from collections.abc import Iterator


class Stop:
    """Shared state of the signal handler (`flows/run.py`), which requests a stop, and the training loop, which obeys.

    Signals belong to the process, so there is one object of this class, `STOP`.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # requested exit code; None: no request
        self.awaited = False  # a loop is running that checks `code` after every step
        self.saving = False  # the loop writes its last checkpoint, and nothing is raised
        self.asked: float | None = None  # when the request came, by time.monotonic
        self.grace_seconds = 25.0  # from the request until this process is killed (runtime.grace_seconds)
        self.save_seconds = 0.0  # what the last checkpoint of the loop took until it was on the disk

    def ask(self, code: int) -> None:
        """Requests a stop with this exit code."""
        self.code, self.asked = code, time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Seconds that are left for writing after a request; infinite without one."""
        return math.inf if self.asked is None else self.asked + self.grace_seconds - self._end - time.monotonic()

    @property
    def step_seconds(self) -> float:
        """Seconds that a step has from the request until it is given up, so that a checkpoint and the end fit after it.

        The end (engines, DVC, Prefect) takes 2 to 6 s on two cores: 60 % of the grace are left for it, at most 10 s.
        """
        return max(1.0, self.grace_seconds - self._end - 1.5 * self.save_seconds)

    @property
    def _end(self) -> float:
        return min(10.0, 0.6 * self.grace_seconds)

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """While a training loop runs, a stop request waits for the end of the step."""
        self.awaited = True
        try:
            yield
        finally:
            self.awaited = False

    @contextlib.contextmanager
    def completing(self) -> Iterator[None]:
        """For this block a stop request raises nothing; a second one still ends the process at once."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False


STOP = Stop()

"""Requests to stop (SIGTERM, Ctrl-C) during training: the loop finishes its step and writes a checkpoint first."""

import contextlib
from collections.abc import Iterator


class Stop:
    """Shared state of the signal handler (`flows/run.py`), which requests a stop, and the training loop, which obeys.

    Signals belong to the process, so there is one object of this class, `STOP`.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # requested exit code; None: no request
        self.awaited = False  # a loop is running that checks `code` after every step

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """While a training loop runs, a stop request waits for the end of the step."""
        self.awaited = True
        try:
            yield
        finally:
            self.awaited = False


STOP = Stop()

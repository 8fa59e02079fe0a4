"""Being asked to end (SIGTERM, Ctrl-C) in the middle of training: the step is finished and a checkpoint written
first.
"""

import contextlib
from collections.abc import Iterator


class Stop:
    """Who asks (`flows/run.py`, in its signal handler) and who listens (a training loop) meet here.

    Signals are the process's own, so there is one object of this class, `STOP`.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # exit code to end with; None: nobody asked
        self.awaited = False  # a loop is running that looks at `code` after every step

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """For the time of a training loop, a request to end waits for the end of the step."""
        self.awaited = True
        try:
            yield
        finally:
            self.awaited = False


STOP = Stop()

"""Locks of a project: who may start an experiment, and who may run a study."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from filelock import Timeout

from stages.job.lock_files import hold_lock, make_native_lock, read_holder

if TYPE_CHECKING:
    from flows.dvc.repro import Output

_POLL_SECONDS = 0.2
_START_SECONDS = 600.0  # until dvc has made its copy; seconds where nothing else goes on


class ExperimentLock:
    """The right to start an experiment in a project: two that start at once take each other's place in dvc's queue of
    one. A `with` block over it ends with the release.
    """

    def __init__(self, root: Path) -> None:
        self._lock = make_native_lock(root / ".ril" / "experiment-starts.lock")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether it is held here."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Acquires it unless another process holds it; whether it is held now."""
        with suppress(Timeout):
            self._lock.acquire(blocking=False)
        return self.held

    def release(self) -> None:
        """Leaves it to the next process."""
        self._lock.release(force=True)


@contextmanager
def hold_experiment_lock(root: Path) -> Iterator[Callable[[], None]]:
    """Waits for the lock and yields the function that releases it. Raises TimeoutError when it does not come."""
    end = time.monotonic() + _START_SECONDS
    with ExperimentLock(root) as lock:
        while not lock.acquire():
            if time.monotonic() > end:
                raise TimeoutError(f"another experiment has been starting for {_START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        yield lock.release


class StudyRunning(RuntimeError):
    """A study runs here already; the message says which."""


@contextmanager
def hold_study_lock(root: Path, name: str) -> Iterator[None]:
    """Holds the project for the study `name`: two at once would make the models that they share twice, in the same
    place.

    Raises Occupied when another process holds it.
    """
    path = root / ".ril" / "study.lock"
    try:
        lock = hold_lock(path, f"study {name} (process {os.getpid()})")
    except Timeout:
        raise StudyRunning(
            f"{read_holder(path)} runs in this project; wait for its end or stop it, finished runs stay"
        ) from None
    with lock:
        yield


class OutputWatcher:
    """Hands text on, and calls `then` once `words` were in it."""

    def __init__(self, output: "Output", words: str, then: Callable[[], None]) -> None:
        self._output, self._words, self._then = output, words, then
        self._part, self._waits = "", True

    def write(self, text: str, /) -> int:
        """Takes a piece of text, of which `words` may be one end."""
        self._part = (self._part + text)[-1000:] if self._waits else ""
        if self._waits and self._words in self._part:
            self._waits = False
            self._then()
        return self._output.write(text)

    def flush(self) -> None:
        """Flushes what the text is handed to."""
        self._output.flush()

"""Whose turn it is: to start an experiment, and to run a study."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.dvc.repro import Output

_POLL_SECONDS = 0.2
_TURN_SECONDS = 600.0  # until dvc has made its copy; seconds where nothing else goes on


class Turn:
    """The right to start an experiment in a project: two that start at once take each other's place in dvc's queue of
    one.
    """

    def __init__(self, root: Path) -> None:
        path = root / ".ril" / "experiment-starts.lock"
        path.parent.mkdir(exist_ok=True)
        self._handle = path.open("w")
        self.held = False

    def take(self) -> bool:
        """Takes it unless another process has it; whether it is held now."""
        with suppress(BlockingIOError):
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        return self.held

    def give(self) -> None:
        """Leaves it to the next."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Leaves it and forgets about it."""
        self._handle.close()
        self.held = False


@contextmanager
def turn_to_start(root: Path) -> Iterator[Callable[[], None]]:
    """Waits for the turn and yields what gives it to the next. Raises TimeoutError when the turn does not come."""
    end = time.monotonic() + _TURN_SECONDS
    with closing(Turn(root)) as turn:
        while not turn.take():
            if time.monotonic() > end:
                raise TimeoutError(f"another experiment has been starting for {_TURN_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        yield turn.give


class Occupied(RuntimeError):
    """A study runs here already; the message says which."""


@contextmanager
def only_study(root: Path, name: str) -> Iterator[None]:
    """Holds the project for the study `name`: two at once would make the models that they share twice, in the same
    place.

    Raises Occupied when another process holds it.
    """
    path = root / ".ril" / "study.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise Occupied(
                f"{handle.read()} runs in this project; wait for its end or stop it, finished runs stay"
            ) from None
        handle.truncate(0)
        handle.write(f"study {name} (process {os.getpid()})")
        handle.flush()
        yield


class Heard:
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

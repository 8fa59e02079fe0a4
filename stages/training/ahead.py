"""Prepares what a training step needs while the step before it, or an earlier part of it, runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Prepared = TypeVar("Prepared")


@contextmanager
def preparing_ahead(make: Callable[[int], Prepared], steps: int) -> Iterator[Callable[[int], Prepared]]:
    """Yields a function like `make`, which on every call also starts to make the next step's value on a thread.

    `make` is a function of the step alone, so that values do not depend on who makes them or where a run began, and
    communicates with no other rank: those would wait in another order. One step is prepared ahead, since a step's
    pixels are large: 1,000 image tokens of Qwen2.5-VL have 19 MB. What `make` raises is raised for the step that it was
    called for. `steps` is the number of all steps.
    """
    made: dict[int, Future[Prepared]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:

        def take(step: int) -> Prepared:
            now = made.pop(step, None) or thread.submit(make, step)
            if step + 1 < steps:
                made[step + 1] = thread.submit(make, step + 1)
            return now.result()

        yield take


@contextmanager
def preparing_beside(make: Callable[[], Prepared]) -> Iterator[Callable[[], Prepared]]:
    """Calls `make` on a thread while the block runs; yields a function that waits for its value and returns it.

    `make` communicates with no other rank. What it raises is raised where its value is taken.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as thread:
        yield thread.submit(make).result

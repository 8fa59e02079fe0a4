"""Prepares requests on a thread while the engine answers others: encoding texts, decoding and scaling images.

An engine in this process waits while this process prepares a prompt: 4 ms for the tiny model's, tens of milliseconds
for a photo. Most of that time is spent outside the interpreter's lock, as the engine's own is.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from stages.engines.engine import Request

Prepared = TypeVar("Prepared")


class Preparation(Generic[Prepared]):
    """Requests in order, each with the future of what the engine takes in its place; at most `answers` are ahead."""

    def __init__(self, requests: Iterable[Request], prepare: Callable[[Request], Prepared], answers: int) -> None:
        """`prepare` runs on one thread, in the order of the requests."""
        self._waiting, self._prepare, self._answers = enumerate(requests), prepare, answers
        self._ahead: deque[tuple[int, Request, Future[Prepared]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def __enter__(self) -> "Preparation[Prepared]":
        return self

    def take(self) -> tuple[int, Request, Future[Prepared]] | None:
        """Returns the next request with its number, and starts to prepare later ones; None if there is none left."""
        self._start()
        if not self._ahead:
            return None
        taken = self._ahead.popleft()
        self._start()
        return taken

    def _start(self) -> None:
        """Reads requests until as many as allowed are ahead: at least one."""
        ahead = sum(request.n for _, request, _ in self._ahead)
        while (ahead < self._answers or not self._ahead) and (found := next(self._waiting, None)) is not None:
            number, request = found
            self._ahead.append((number, request, self._thread.submit(self._prepare, request)))
            ahead += request.n

    def __exit__(self, *_: object) -> None:
        """Waits for the request in preparation; those after it are not prepared."""
        self._thread.shutdown(cancel_futures=True)

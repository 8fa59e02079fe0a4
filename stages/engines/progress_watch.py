"""Ends a vLLM server that has open requests and makes no progress: its engine hangs, though its process is alive.

A request has a time limit of its own (`timeout`), which must cover the longest answer and the time in the queue. A
server that works shows earlier that it does: the counters of its tokens on `/metrics` grow.
"""

import re
import threading
from collections.abc import Callable, Sequence

import httpx

from stages.job.silence import Silence

LOOK_SECONDS = 10.0
METRICS_ROUTE = "/metrics"
_COUNTER = re.compile(r"^vllm:(?:prompt|generation)_tokens_total\{.*\} (\S+)$", re.MULTILINE)


def read_counters(client: httpx.Client) -> tuple[str, ...] | None:
    """Returns the counters of tokens of a server; None when it gives none within a few seconds."""
    try:
        reply = client.get(METRICS_ROUTE, timeout=LOOK_SECONDS / 2)
    except httpx.TransportError:
        return None
    return tuple(_COUNTER.findall(reply.text)) or None


class ProgressWatch:
    """A thread that looks at servers with open requests and names those without progress."""

    def __init__(
        self,
        clients: Sequence[Callable[[], httpx.Client]],
        count_open: Callable[[], Sequence[int]],
        limit: float,
        end: Callable[[int, str], None],
    ) -> None:
        """Starts to watch.

        `count_open` returns the number of open requests of each server. `end` gets the place and a reason when a server
        has shown no progress for `limit` seconds; a server that has never shown its counters is not judged.
        """
        self._clients, self._count_open, self._limit, self._end = clients, count_open, limit, end
        self._silences = [Silence() for _ in clients]
        self._counters: list[tuple[str, ...] | None] = [None for _ in clients]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch over vLLM servers")
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(min(LOOK_SECONDS, self._limit / 4)):
            for place, count in enumerate(self._count_open()):
                if self._look(place, count):
                    return

    def _look(self, place: int, count: int) -> bool:
        """Looks at one server; returns whether it was ended."""
        if count == 0:
            self._silences[place].measure(object())
            return False
        with self._clients[place]() as client:
            found = read_counters(client)
        self._counters[place] = found or self._counters[place]  # no reply is no progress
        seconds = self._silences[place].measure(self._counters[place])
        if self._counters[place] is None or seconds < self._limit:
            return False
        self._end(place, f"the server has {count} open requests and has processed no token for {seconds:.0f} s")
        return True

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

"""Speed of generation: counts and times answers while they are generated. Never part of a result."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from stages.job.progress import Progress

_Item = TypeVar("_Item")


class SpeedMeter(Progress):
    """A progress display that wraps another one and counts answers."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.answers = 0
        self.tokens = 0
        self.seconds = 0.0

    def say(self, text: str) -> None:
        """Prints a line on the wrapped display."""
        self._shown.say(text)

    def show_table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows a table on the wrapped display."""
        self._shown.show_table(title, rows)

    def track(
        self, items: Iterable[_Item], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[_Item]:
        """Yields `items` with the wrapped display's bar; counts each answer and its tokens."""
        started = time.perf_counter()
        for item in self._shown.track(items, description, total, done):
            self.answers += 1
            self.tokens += getattr(item, "completion_tokens", 0)
            yield item
        self.seconds += time.perf_counter() - started

    @property
    def rates(self) -> dict[str, float]:
        """Returns ms per answer at full batch and tokens per second; empty without answers (all were stored)."""
        if not self.answers or not self.seconds:
            return {}
        return {
            "answers": self.answers,
            "milliseconds_an_answer": round(1000 * self.seconds / self.answers, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
        }

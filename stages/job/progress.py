"""Progress display of a stage: bars with rate and ETA, lines, tables.

Stages use this interface only; `flows` implements the same methods with Prefect when a server is available.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_LOG_SECONDS = 15.0  # without a terminal, progress is one line per interval instead of a bar


class Progress:
    """Progress on the console. All output goes to standard error; standard output is reserved for results."""

    def say(self, text: str) -> None:
        """Prints one line."""
        tqdm.write(text, file=sys.stderr)

    def track(
        self, items: Iterable[_Item], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[_Item]:
        """Yields `items` behind a bar with rate and ETA; `done` of `total` were finished by an earlier run."""
        if total is None and isinstance(items, Sequence):
            total = len(items) + done
        terminal = sys.stderr.isatty()
        bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not terminal,
        )
        count, start, said = done, time.monotonic(), time.monotonic()
        for item in items:
            yield item
            count += 1
            bar.update(1)
            now = time.monotonic()
            if not terminal and now - said >= _LOG_SECONDS:
                said = now
                self.say(_format_line(description, count, total, (count - done) / (now - start)))
            self.on_advance(description, count, total)
        bar.close()
        if not terminal:
            self.say(_format_line(description, count, total, (count - done) / max(time.monotonic() - start, 1e-9)))

    def on_advance(self, description: str, count: int, total: int | None) -> None:
        """Called after each item of `track`; a hook for other displays."""

    def show_latest(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Called after each step of a loop with its latest rows (metrics, samples); the console ignores them."""

    def show_table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prints rows with equal keys as an aligned table."""
        if not rows:
            return
        heads = list(rows[0])
        cells = [[_format_cell(row[head]) for head in heads] for row in rows]
        widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [heads, *cells]
        ]
        self.say("\n".join([title, *("  " + line.rstrip() for line in lines)]))


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_line(description: str, count: int, total: int | None, rate: float) -> str:
    if total is None:
        return f"{description}: {count} ({rate:.3g}/s)"
    left = (total - count) / rate if rate > 0 else 0.0
    return f"{description}: {count} of {total} ({rate:.3g}/s, {left:.0f} s left)"

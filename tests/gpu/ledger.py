"""The figures of tests/gpu/run as they come: each is printed and written at once, and nothing ends the others."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.job.files import write_text

Figures = dict[str, Any]


class Ledger:
    """The measurements of one run, by shape and way."""

    def __init__(self, path: Path | None, minutes: float) -> None:
        """Writes to `path` after each measurement, if it is given; none starts after `minutes`."""
        self._path, self._end = path, time.monotonic() + 60 * minutes
        self.figures: dict[str, dict[str, Figures]] = {}
        self.failed = False  # whether a measurement ended with another error than out of memory

    def measure(self, shape: str, way: str, compute: Callable[[], Figures]) -> None:
        """Calls `compute` for its figures. Out of memory and faults are results: the next one has its turn."""
        if time.monotonic() > self._end:
            self.note(shape, way, {"not_measured": "the time was up"})
            return
        start = time.monotonic()
        try:
            found = compute()
        except torch.OutOfMemoryError as error:
            found = {"out_of_memory": str(error).split(".")[0]}
        except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
            self.failed = True
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
        free_memory()
        self.note(shape, way, {**found, "wall_seconds": round(time.monotonic() - start, 1)})

    def note(self, shape: str, way: str, figures: Figures) -> None:
        """Prints and writes the figures of one measurement."""
        self.figures.setdefault(shape, {})[way] = figures
        told = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        print(f"{shape}, {way}: {told}", flush=True)
        if self._path is not None:
            write_text(self._path, json.dumps(self.figures, indent=1))


def free_memory() -> None:
    """Gives back what no tensor uses: after out of memory the next measurement starts with all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

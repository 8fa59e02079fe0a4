"""How a worker process of either side is told what to do, and how it reports. Standard library and torch only.

The driver writes one order a line: `step` (one training step, timed), `count` (one step, its FLOPs counted), `dump
FILE` (all weights as safetensors), `prompts` (their token ids; TRL's side only), `end`. The worker answers each with
one JSON line. CPU seconds are the process's own.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn


class Orders:
    """The driver's end of the pipe. Whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def next(self) -> list[str]:
        """The next order, waiting for it without using the processor; `end` when the driver is gone."""
        return sys.stdin.readline().split() or ["end"]

    def answer(self, **values: Any) -> None:
        """One answer."""
        print(json.dumps(values), file=self._answers, flush=True)


class Parts:
    """CPU seconds of the parts of a step: each `enter` ends the part before it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._part, self._since = "other", time.process_time()

    def enter(self, part: str) -> str:
        """Begins `part`; returns the one that ends."""
        now = time.process_time()
        before, self._part = self._part, part
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._since = now
        return before

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """`part` for the time of a block, then again what was before."""
        before = self.enter(part)
        yield
        self.enter(before)

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Every call of owner.name counts as `part`."""
        inner = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.within(part):
                return inner(*arguments, **keywords)

        setattr(owner, name, timed)


class Step:
    """Measures one step between `begin` and `end`."""

    def __init__(self, parts: Parts, count: bool) -> None:
        self._parts = parts
        self._counter: Any = None
        if count:
            from torch.utils.flop_counter import FlopCounterMode

            self._counter = FlopCounterMode(display=False)

    def begin(self) -> "Step":
        """Starts the clock; the highest memory is that from here on."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory("VmRSS")
        if self._counter:
            self._counter.__enter__()
        self._parts.enter("prepare")
        self._parts.seconds.clear()
        return self

    def end(self) -> dict[str, Any]:
        """CPU seconds in all and of each part, peak memory in MiB, floating point operations where they were
        counted.
        """
        self._parts.enter("other")
        seconds = dict(self._parts.seconds)
        if self._counter:
            self._counter.__exit__(None, None, None)
        flops = self._counter.get_total_flops() if self._counter else 0
        peak = _memory("VmHWM")
        return {
            "seconds": sum(seconds.values()),
            "parts": seconds,
            "flops": flops,
            "peak": peak,
            "grown": peak - self._before,
        }


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def dump(model: nn.Module, file: Path) -> None:
    """Writes every parameter by its transformers name."""
    from safetensors.torch import save_file

    save_file({name: parameter.detach().clone() for name, parameter in model.named_parameters()}, file)


def settle() -> None:
    """One thread: CPU seconds of two threads on a shared machine count their waiting."""
    torch.set_num_threads(1)

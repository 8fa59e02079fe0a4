"""Writes checkpoints while the next steps compute: copies of the state in host memory, and the thread that writes them.

A step waits for the copies alone. Each rank's thread writes its own part; the threads of all ranks then tell each other
how it went, and the first one's renames the checkpoint into place when all parts are on the disk.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.job.failure import Failure
from stages.job.host_memory import measure_free_memory
from stages.job.stop import STOP
from stages.training.ranks import get_ranks, get_ranks_beside
from stages.training.room import format_bytes

if TYPE_CHECKING:  # it imports deepspeed, which takes seconds
    from stages.training.fragments import Fragment

_MEMORY_SHARE = 0.8  # of the free host memory that copies may take
_POLL_SECONDS = 0.5  # for a stop request that comes meanwhile


class HostCopies:
    """Copies of the fragments of this rank's models, in host memory that is allocated once.

    On GPUs the memory is pinned: 29 GB, the part of a rank of six in the state of two 7B models, take 1 to 2 s.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._buffers: dict[str, list[Tensor]] | None = None
        self._fits: bool | None = None

    def take(self, state: "Mapping[str, Sequence[Fragment]]") -> "Mapping[str, Sequence[Fragment]] | None":
        """Returns copies of the fragments of each model, which the next call overwrites; all ranks call it together.

        Returns None where some rank has too little free host memory for its copies; the first one says so, once.
        """
        from stages.training.fragment_files import split_fragments

        if self._fits is None:
            self._fits = self._has_room(state)
        if not self._fits:
            return None
        parts = {name: list(split_fragments(own)) for name, own in state.items()}
        if self._buffers is None:
            self._buffers = {name: [_make_buffer(part) for part in own] for name, own in parts.items()}
        copies = {name: _copy_parts(own, self._buffers[name]) for name, own in parts.items()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # copies to pinned memory return before they are complete
        return copies

    def _has_room(self, state: "Mapping[str, Sequence[Fragment]]") -> bool:
        ranks, here = get_ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        needed = here * sum(one.bytes for own in state.values() for one in own)
        free = measure_free_memory()
        short = needed > _MEMORY_SHARE * free
        if not any(ranks.gather(short)):
            return True
        if ranks.first:
            self._say(
                f"warning: checkpoints are written while training waits: copies of the state need about "
                f"{format_bytes(needed)} of host memory, and {format_bytes(free)} are free"
            )
        return False


class BackgroundWriter:
    """Writes one checkpoint at a time on a thread, together with the writers of the other ranks."""

    def __init__(self) -> None:
        self._ranks = get_ranks_beside()
        self._work: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the write in flight has failed; `finish` raises the reason."""
        work = self._work
        return work is not None and work.done() and work.exception() is not None

    def start(self, write: Callable[[], None], commit: contextlib.ExitStack, clear_up: Callable[[], None]) -> None:
        """Starts to write; all ranks call this together, after `finish`.

        `write` writes this rank's part to the disk. When all ranks have done so, `commit` is left, which puts the
        checkpoint into place, and `clear_up` is called. If a rank has failed, `commit` is left with the error.
        """
        work = self._work = Future[None]()

        def run() -> None:
            try:
                with commit:
                    self._write_together(write)
                clear_up()
            except BaseException as error:  # raised by `finish`
                work.set_exception(error)
            else:
                work.set_result(None)

        threading.Thread(target=run, daemon=True, name="checkpoint").start()

    def _write_together(self, write: Callable[[], None]) -> None:
        failure: Exception | None = None
        try:
            write()
        except Exception as error:  # the other ranks wait for this one's word
            failure = error
        reasons = self._ranks.gather(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise Failure(f"rank {rank}: {reason}")

    def await_end(self) -> bool:
        """Waits for the write in flight, after a stop request as long as there is time; returns whether it is over."""
        while self._work is not None and not self._work.done():
            if STOP.seconds_left <= 0:
                return False
            wait([self._work], timeout=_POLL_SECONDS)
        return True

    def finish(self) -> bool:
        """Waits like `await_end`; raises the reason if the write failed."""
        if not self.await_end():
            return False
        work, self._work = self._work, None
        if work is not None:
            work.result(timeout=0)
        return True


def _make_buffer(part: "Sequence[Fragment]") -> Tensor:
    """One buffer for a file of 1 GiB: torch rounds pinned memory up to a power of two, so that small ones waste it."""
    pinned = any(tensor.is_cuda for one in part for tensor in one.values.values())
    return torch.empty(sum(one.bytes for one in part) // 4, dtype=torch.float32, pin_memory=pinned)


def _copy_parts(parts: "Sequence[Sequence[Fragment]]", buffers: Sequence[Tensor]) -> "list[Fragment]":
    copies = []
    for part, buffer in zip(parts, buffers, strict=True):
        pieces = iter(buffer.split_with_sizes([one.length for one in part for _ in one.values]))
        for one in part:
            values = {kind: next(pieces).copy_(tensor, non_blocking=True) for kind, tensor in one.values.items()}
            copies.append(replace(one, values=values, updates=one.updates.clone()))
    return copies

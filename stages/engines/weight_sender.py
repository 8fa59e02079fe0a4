"""The side of training: new weights pass to the workers of all replicas at once, bucket by bucket."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.engines.weight_buckets import BUCKET_BYTES, Bucket, iter_buckets
from stages.engines.weight_file import opening_storage
from stages.engines.weight_group import (
    GROUP_SECONDS,
    broadcast_from_first,
    describe_buffer,
    free_buffers,
    make_buffer,
    name_device,
    open_group,
    synchronize,
)
from stages.engines.weight_receiver import WeightReceiver

# Calls a method of every worker of every replica, with JSON; returns their results by replica and worker.
AskWorkers = Callable[[Callable[..., Any], Mapping[str, Any]], list[list[Any]]]


class WeightSender:
    """Sends weights to the workers of the engines that `ask` reaches; their servers are on this machine."""

    def __init__(self, ask: AskWorkers, folder: Path, device: torch.device) -> None:
        """`folder` is one that only this user can enter, `device` that of the trained model."""
        self._ask, self._folder, self._device = ask, folder, device
        self._group: Any = None
        self._beside: list[str] | None = None  # workers on the sender's device; None: nobody was asked yet

    def send(self, named: Iterable[tuple[str, Tensor]], limit: int = BUCKET_BYTES) -> int:
        """Gives every worker the tensors of `named`; returns their bytes.

        The buffer on the sender's device has `limit` bytes, or those of the largest tensor. Raises what `ask` raises
        when a server fails, without waiting for the others.
        """
        if self._beside is None:
            self._beside = self._join()
        content = 0
        self._ask(WeightReceiver.begin_weights, {})
        with opening_storage(limit, self._folder) as folder:
            buffer = make_buffer(self._device, limit, folder)
            for bucket in iter_buckets(named, limit):
                if bucket.size > buffer.numel():
                    buffer = make_buffer(self._device, bucket.size, folder)
                self._send_bucket(bucket, buffer, folder)
                content += bucket.content
        self._ask(WeightReceiver.end_weights, {})
        del buffer
        free_buffers(self._device)
        return content

    def _join(self) -> list[str]:
        """Opens a group with the workers on other devices; returns those on the sender's."""
        here = name_device(self._device)
        workers = [worker for engine in self._ask(WeightReceiver.locate_receiver, {}) for worker in engine]
        away = [worker for worker, device in workers if device != here]
        if away:
            store, size = self._folder / "weight-group", len(away) + 1
            opened = _start(lambda: open_group(self._device, store, 0, size))
            places = {worker: place for place, worker in enumerate(away, 1)}
            self._ask(WeightReceiver.join_sender, {"store": str(store), "places": places, "size": size})
            self._group = opened.result(GROUP_SECONDS)
        return [worker for worker, device in workers if device == here]

    def _send_bucket(self, bucket: Bucket, buffer: Tensor, folder: Path) -> None:
        bucket.pack(buffer)
        synchronize(self._device)
        sent = None
        if self._group is not None:
            sent = _start(lambda: broadcast_from_first(self._group, buffer[: bucket.size]))
        # torch counts who has opened a buffer, so each worker gets a description of its own
        buffers = {worker: describe_buffer(buffer, folder) for worker in self._beside or ()}
        self._ask(WeightReceiver.receive_bucket, {"slots": bucket.slots, "size": bucket.size, "buffers": buffers})
        if sent is not None:
            sent.result(GROUP_SECONDS)


def _start(work: Callable[[], Any]) -> "Future[Any]":
    """Begins `work` beside this thread. When the other side has died it may never end, and must not hold the exit."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found

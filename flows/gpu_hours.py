"""Counts the GPU hours of a stage, and ends it when its cap (`budget.<stage>.gpu_hours`) is used up."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stages.job.spending import Spending

LOOK_SECONDS = 20.0  # between entries: a kill forgets as much


@contextmanager
def count_gpu_hours(spending: Spending, gpus: int, seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """For this block, enters the time that passes on `gpus` GPUs; at the cap sends SIGXCPU to this process.

    Counts nothing without GPUs. Raises BudgetReached where the cap is used up before the start.
    """
    if not gpus:
        yield
        return
    if spending.find_reached() == "gpu_hours":
        spending.check()
    ended = threading.Event()
    watch = threading.Thread(target=_count, args=(spending, gpus, seconds, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join(seconds)


def _count(spending: Spending, gpus: int, seconds: float, ended: threading.Event) -> None:
    last, told, over = time.monotonic(), False, False
    while not over:
        over = ended.wait(seconds)
        now = time.monotonic()
        spending.add_gpu_hours((now - last) * gpus / 3600)
        last = now
        if not told and not over and spending.find_reached() == "gpu_hours":
            told = True
            os.kill(os.getpid(), signal.SIGXCPU)

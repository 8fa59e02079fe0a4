"""Starts ranks that meet over gloo in a file of a folder."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work: Callable[..., None], count: int, folder: Path, arguments: tuple[Any, ...], limit: float) -> None:
    """Runs `work(*arguments)` in `count` processes of one group; the test fails after `limit` seconds."""
    begun = time.monotonic()
    context = mp.spawn(_join_and_work, (count, str(folder), work, arguments), nprocs=count, join=False)
    assert context is not None
    while not context.join(timeout=5):
        if time.monotonic() - begun > limit:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{count} ranks hang")


def _join_and_work(rank: int, count: int, folder: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{count}", rank=rank, world_size=count)
    work(*arguments)
    dist.destroy_process_group()

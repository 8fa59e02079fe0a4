"""Several ranks write one checkpoint beside their steps: it is in place when every part is on the disk."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from stages.job.failure import Failure
from stages.training.background import BackgroundWriter
from stages.training.ranks import get_ranks
from tests.stages.training.spawned import run_ranks


def write_in_ranks(folder: str) -> None:
    """Twice: all ranks write, then one fails. The second rank is slower, and the first must wait for it."""
    here, writer = get_ranks(), BackgroundWriter()
    for name, broken in (("whole", False), ("broken", True)):
        file = Path(folder) / name

        def write(broken: bool = broken, file: Path = file) -> None:
            if here.rank == 1:
                time.sleep(0.5)
                if broken:
                    raise OSError("the disk of rank 1 is gone")
            file.with_suffix(f".{here.rank}").touch()

        def commit(kind: Any, error: Any, trace: Any, file: Path = file) -> None:
            if here.first:
                file.write_text(f"{file.with_suffix('.1').exists()} {error}")

        stack = contextlib.ExitStack()
        stack.push(commit)
        writer.start(write, stack, lambda: None)
        assert get_ranks().sum(1.0) == here.count, "steps communicate meanwhile"
        expected: type[Exception] = OSError if here.rank == 1 else Failure
        with pytest.raises(expected, match="the disk of rank 1 is gone") if broken else contextlib.nullcontext():
            writer.finish()


@pytest.mark.slow
def test_a_checkpoint_is_in_place_when_every_rank_has_written_its_part(tmp_path: Path) -> None:
    run_ranks(write_in_ranks, 2, tmp_path, (str(tmp_path),), 120)
    assert (tmp_path / "whole").read_text() == "True None"
    assert (tmp_path / "broken").read_text() == "False rank 1: the disk of rank 1 is gone"

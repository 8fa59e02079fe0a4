"""SIGKILL to the server, to the worker (`ril serve` and the form's run), to both, in the middle of a stage."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.server import server_answers
from stages.job import read_yaml

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"
LONG = {"models": {"judge": {"build": {"steps": 5000}}}}
QUICK = {"models": {"judge": {"build": {"steps": 60}}}}


@pytest.fixture
def own(tmp_path: Path, make_served: Callable[[Path], Any]) -> Iterator[Any]:
    """A `ril serve` that the test may kill."""
    one = make_served(tmp_path)
    yield one
    one.kill()


def training(own: Any, settings: Any = None) -> tuple[str, list[psutil.Process]]:
    """Starts the judge by its form: the run, and the processes of dvc and the stage, of which one has kept a step."""
    run = own.submit(JUDGE, settings=settings or {})
    own.until(lambda: checkpoints(own), 300, "no checkpoint")
    workers = own.workers()
    assert len(workers) == 2, "dvc and the stage"
    return run, workers


def checkpoints(own: Any) -> list[Path]:
    return list(own.project.glob(".ril/runs/model@judge/*/step_*/DONE"))


def server_processes(own: Any) -> list[psutil.Process]:
    return [process for process in own.everything() if "prefect server start" in " ".join(process.cmdline())]

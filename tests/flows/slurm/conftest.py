"""A cluster for the tests, and stages that are submitted to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.slurm.cluster import PACKAGES, Cluster, list_absent_daemons, running_cluster


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    if absent := list_absent_daemons():
        pytest.skip(f"not installed: {', '.join(absent)} ({PACKAGES})")
    with running_cluster() as one:
        yield one


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, without jobs."""
    _cluster.clear()
    yield _cluster
    _cluster.clear()


class Submitted:
    """A stage, or `ril run`, whose jobs go to the cluster: the process here, and what it has said."""

    def __init__(self, cluster: Cluster, project: Path, *arguments: str, **variables: str) -> None:
        self.cluster, self.project = cluster, project
        left_out = ("DVC_STAGE", "DVC_ROOT", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in cluster.environment.items() if name not in left_out}
        environment |= {"PYTHONPATH": str(project), "RIL_LAUNCHER": "slurm", **variables}
        self._log = project / f"said-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All output so far."""
        return self._log.read_text(errors="replace")

    def until(self, condition: Callable[[], Any], seconds: float, complaint: str) -> Any:
        """Waits for `condition` while the process lives."""

        def look() -> Any:
            answer = condition()
            assert answer or self.process.poll() is None, f"{complaint}: it has ended\n{self.said}"
            return answer

        return self.cluster.until(look, seconds, f"{complaint}\n{self.said}")

    def wait(self, seconds: float = 200) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended in {seconds:.0f} s\n{self.said}") from None

    def kill(self) -> None:
        """SIGKILL, so that it does nothing any more."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture
def submit(cluster: Cluster) -> Iterator[Callable[..., Submitted]]:
    """Starts `python -m <arguments>` in a project with jobs of the cluster."""
    started: list[Submitted] = []

    def begin(project: Path, *arguments: str, **variables: str) -> Submitted:
        started.append(Submitted(cluster, project, *arguments, **variables))
        return started[-1]

    yield begin
    for one in started:
        one.kill()

"""A run whose student has really been scored, for tests that start engines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.tiny_run import copy_run


@pytest.fixture(scope="session")
def evaluated_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which stage `evaluate` has really scored the RIL student, with vLLM: data/evaluate/ril."""
    project = copy_run(tiny_run, tmp_path_factory.mktemp("evaluated") / "project")
    left_out = ("DVC_STAGE", "DVC_ROOT", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    done = subprocess.run(
        [sys.executable, "-m", "flows.run", "evaluate", "ril"],
        cwd=project,
        env={**environment, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return project

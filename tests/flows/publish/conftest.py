"""A run that has ended, for all tests of publishing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.tiny_run import OVERLAY, write_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, copy_project: Callable[..., Path]) -> Path:
    """A project with the results of a run; tests that change it take a copy."""
    return write_tiny_run(copy_project(tmp_path_factory.mktemp("run") / "project", OVERLAY))

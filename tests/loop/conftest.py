"""Projects for whole stages, built once a family and copied for each run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loop.world import build_world


@pytest.fixture(scope="session")
def built_worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`built_worlds(family)` is a project that nothing may write into."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = build_world(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture
def make_world(built_worlds: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's project for one test."""
    return lambda family: Path(shutil.copytree(built_worlds(family), tmp_path / family))

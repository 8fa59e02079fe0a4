"""What all tests share: the libraries' settings, and projects of their own in temporary folders."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, settings

from flows.environment import prepare
from stages.config.model import Family
from stages.config.yaml import merged, read_yaml

ROOT = Path(__file__).resolve().parents[1]
TINY_QUESTIONS = {"questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}}}

os.environ.pop("PREFECT_API_URL", None)  # no test may write to a server that happens to run here
prepare()
# A machine under load stalls for longer than hypothesis allows an example, or its drawing, to take.
settings.register_profile("ril", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ril")


@pytest.fixture(autouse=True)
def _port_of_this_process() -> Iterator[None]:
    """A test that trains sets the port of its process group; stages that later tests start must not inherit it."""
    yield
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(params=[name for name in get_args(Family) if name not in ("qwen2_5", "remote")])
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models that see images."""
    return str(request.param)


@pytest.fixture
def make_project(tmp_path: Path, copy_project: Callable[..., Path]) -> Callable[..., Path]:
    """Copies what a run needs (code, params, dvc.yaml) into a temporary folder, with `overlay` laid over the params."""

    def make(overlay: Mapping[str, Any] = TINY_QUESTIONS, name: str = "project") -> Path:
        return copy_project(tmp_path / name, overlay)

    return make


@pytest.fixture(scope="session")
def copy_project() -> Callable[..., Path]:
    """The same, into a given folder."""

    def copy(folder: Path, overlay: Mapping[str, Any]) -> Path:
        for part in ("stages", "flows", "profiles"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        studies = shutil.ignore_patterns("__pycache__", "results", "*.yaml")  # a test has studies of its own
        shutil.copytree(ROOT / "studies", folder / "studies", ignore=studies)
        for file in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / file, folder / file)
        values = merged(read_yaml(ROOT / "params.yaml"), overlay)
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return folder

    return copy


@pytest.fixture
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `python -m <module> <arguments>` in a project, with that project's code."""

    def begin(project: Path, module: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        left_out = ("DVC_STAGE", "DVC_ROOT", "PYTHONDONTWRITEBYTECODE", "MASTER_ADDR", "MASTER_PORT")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment |= {"PYTHONPATH": str(project), **variables}
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture
def call(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., tuple[int, str, str]]:
    """Runs `python -m <module> <arguments>` in a project to its end: exit code, standard output, standard error."""

    def finish(project: Path, module: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        process = start(project, module, *arguments, **variables)
        try:
            out, err = process.communicate(timeout=180)
        finally:
            process.kill()
        return process.returncode, out, err

    return finish

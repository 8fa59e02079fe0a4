"""What all tests share: the libraries' settings, how they run on several workers, and projects in temporary folders.

`--long third` runs a third of the tests that start engines, train, or open a browser, another one every 32 commits;
sixth and twelfth run a part of that third; the default is all of them. Long forms of single tests, off by default:
RIL_PROPERTIES=thorough (examples of each property), RIL_KILLS=20 (moments of a kill), RIL_RANKS=1 (ranks and ZeRO
stages), RIL_LARGE_CELL=1 (a cell of 300 MB), RIL_WALK=1 (published checkpoints through the pipeline).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from filelock import ReadWriteLock
from hypothesis import HealthCheck, settings

from flows.environment import prepare
from stages.config.model import TEXT_FAMILIES, FamilyName
from stages.config.yaml import merge_params, read_yaml

ROOT = Path(__file__).resolve().parents[1]
TINY_QUESTIONS = {"questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}}}

os.environ.pop("PREFECT_API_URL", None)  # no test may write to a server that happens to run here
prepare()
# A machine under load stalls for longer than hypothesis allows an example, or its drawing, to take.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("ci", UNHURRIED, max_examples=50)
settings.register_profile("thorough", UNHURRIED, max_examples=2000)
settings.load_profile(os.environ.get("RIL_PROPERTIES", "ci"))

SEEING = [name for name in get_args(FamilyName) if name not in (*TEXT_FAMILIES, "remote")]  # families that see images
LONG = ("slow", "browser", "prefect")  # marks of tests that take seconds to minutes
COMMITS_A_DRAW = 32
LONG_SHARES = {"all": 1.0, "third": 1 / 3, "sixth": 1 / 6, "twelfth": 1 / 12, "none": 0.0}
MACHINE = pytest.StashKey[ReadWriteLock]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`: how many of the long tests run."""
    said = f"which of the tests marked {', '.join(LONG)} run; third, sixth, twelfth: those of the draw"
    parser.addoption("--long", choices=tuple(LONG_SHARES), default="all", help=said)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says that a part of the tests is left out."""
    share = config.getoption("--long")
    return None if share == "all" else f"long tests: {share}, draw {find_draw()} (make test LONG=all runs all)"


@cache
def find_draw() -> int:
    """The number of the draw, which changes with every 32 commits: a change that mends another runs the same tests.

    It is 0 in a folder that is no repository.
    """
    words = ["git", "rev-list", "--count", "HEAD"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
    return int(found.stdout or 0) // COMMITS_A_DRAW


def is_drawn(name: str, draw: int, share: float) -> bool:
    """Whether a long test is in the part of this draw."""
    return int.from_bytes(hashlib.sha256(f"{draw} {name}".encode()).digest()[:6]) < share * 2**48


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out long tests that are not drawn.

    Several workers begin with the modules that take longest, so that all of them end at about the same time.
    """
    long = {item.nodeid for item in items if any(map(item.get_closest_marker, LONG))}
    share = LONG_SHARES[config.getoption("--long")]
    left = [item for item in items if item.nodeid in long and not is_drawn(item.nodeid, find_draw(), share)]
    if left:
        config.hook.pytest_deselected(items=left)
        left_names = {item.nodeid for item in left}
        items[:] = [item for item in items if item.nodeid not in left_names]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    weights: dict[Path, int] = {}
    for item in items:
        weights[item.path] = weights.get(item.path, 0) + (100 if item.nodeid in long else 1)
    items.sort(key=lambda item: -weights[item.path])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which modules take most of the time; CI has a budget (.ci/run)."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "duration")]
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds[report.nodeid.partition("::")[0]] += report.duration
    if seconds.total() > 600:
        terminalreporter.section(f"slowest modules, of {seconds.total():.0f} s")
        for name, taken in seconds.most_common(30):
            terminalreporter.write_line(f"{taken:7.0f} s  {name}")


@pytest.fixture(scope="session", autouse=True)
def _machine(request: pytest.FixtureRequest, shared_folder: Path) -> None:
    """All workers' tests hold this lock together; one that measures time (marked `alone`) holds it by itself."""
    request.config.stash[MACHINE] = ReadWriteLock(shared_folder / "machine.lock")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Runs the test when the machine is free for it."""
    machine = item.config.stash.get(MACHINE, None)
    if machine is None:
        return (yield)
    with machine.write_lock() if item.get_closest_marker("alone") else machine.read_lock():
        return (yield)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that the workers of one run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def _port_of_this_process() -> Iterator[None]:
    """A test that trains sets the port of its process group; stages that later tests start must not inherit it."""
    yield
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(params=SEEING)
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
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("data"))
        studies = shutil.ignore_patterns("__pycache__", "results", "*.yaml")  # a test has studies of its own
        shutil.copytree(ROOT / "studies", folder / "studies", ignore=studies)
        for file in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / file, folder / file)
        values = merge_params(read_yaml(ROOT / "params.yaml"), overlay)
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


@pytest.fixture
def ril(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `ril <arguments>` in a temporary folder: exit code, standard output, standard error."""
    from flows.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name in ("RIL_ALLOW_DOWNLOADS", "RIL_STORE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ril", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run

"""A copy of the checkout in which one text of the source stands replaced, and tests that run there, in a fork."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("stages", "flows", "studies", "tests", "profiles", "examples")
FILES = ("pyproject.toml", "params.yaml", "dvc.yaml", ".dvcignore", "README.md")
PASSED, FAILED = 0, 1  # exit codes of pytest
STOPPED = -1  # the time limit


@dataclass(frozen=True)
class Ended:
    """How a run of pytest ended."""

    code: int  # of pytest, or STOPPED
    failed: str  # id of the first test that failed, or ""
    seconds: float


def copy_checkout(folder: Path) -> None:
    """Copies what the tests read into `folder`, which must not exist."""
    folder.mkdir(parents=True)
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)


@contextlib.contextmanager
def replacing(file: Path, text: str, replacement: str) -> Iterator[None]:
    """Holds `replacement` in the place of `text` in a file. Raises ValueError unless it stands there exactly once."""
    whole = file.read_text()
    if (times := whole.count(text)) != 1:
        raise ValueError(f"the text stands {times} times in the file")
    _write(file, whole.replace(text, replacement))
    try:
        yield
    finally:
        _write(file, whole)


def _write(file: Path, text: str) -> None:
    """Writes a module and removes its bytecode, which Python trusts if size and second are the same."""
    file.write_text(text)
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def import_libraries() -> None:
    """Imports what most tests need, once for all forks: a test that takes no time then takes 2 seconds and not 10."""
    import deepspeed  # noqa: F401
    import pytest  # noqa: F401
    import torch

    import tests.conftest
    import tests.stages.conftest  # noqa: F401

    torch.set_num_threads(1)


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> Ended:
    """Runs tests of the copy in `folder` up to the first that fails, for at most `limit` seconds."""
    note, began = folder.with_name(f"{folder.name}.failed"), time.monotonic()
    note.write_text("")
    child = os.fork()
    if child == 0:
        os.setsid()  # so that all processes of the tests can be ended together
        code = 70
        try:
            code = _call_pytest(folder, tests, note)
        finally:
            os._exit(code)
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - began < limit:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(ended[1]) if ended[0] else STOPPED
    if not ended[0]:
        os.waitpid(child, 0)
    return Ended(code, note.read_text(), time.monotonic() - began)


class _FirstFailure:
    """Writes the id of the first test that fails into a file."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:  # noqa: F821
        if report.failed and not self._note.read_text():
            self._note.write_text(report.nodeid)


def _call_pytest(folder: Path, tests: Sequence[str], note: Path) -> int:
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in FOLDERS]:
        del sys.modules[name]
    said = folder.with_name(f"{folder.name}.log").open("w")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    import pytest

    temporary = folder.with_name(f"{folder.name}.tmp")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "", f"--basetemp={temporary}"]
    return int(pytest.main([*options, *tests], plugins=[_FirstFailure(note)]))

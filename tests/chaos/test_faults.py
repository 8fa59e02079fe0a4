"""The faults of the chaos rounds do what they say to a process, and the checks of a round see what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.faults import CLOCK, DAY_NS, FULL, LOSS, Page
from tests.chaos.processes import MARK, await_end, list_processes
from tests.chaos.rounds import compare_outs

WRITE = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
try:
    print(os.write(file, b"12345"))
except OSError as error:
    print(error.errno)
"""
LISTEN = """
import socket
server = socket.create_server(("127.0.0.1", 0))
try:
    socket.create_connection(server.getsockname(), timeout=5)
    print("connected")
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    project = tmp_path / "project"
    project.mkdir()
    return Page(tmp_path, project)


@pytest.fixture
def run(page: Page) -> Callable[..., str]:
    """Runs a program under the page and returns what it prints."""

    def run(program: str, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-S", "-c", program, *arguments],
            env={**os.environ, **page.describe_environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()

    return run


def test_a_full_disk_fails_writes_below_the_folder_only(page: Page, run: Callable[..., str], tmp_path: Path) -> None:
    assert run(WRITE, str(page.project / "a")) == "5"
    page.set(FULL, 1)
    assert run(WRITE, str(page.project / "b")) == "28"
    assert run(WRITE, str(tmp_path / "elsewhere")) == "5"
    assert page.count_failures() == 1
    page.set(FULL, 0)
    assert run(WRITE, str(page.project / "b")) == "5"


def test_a_moved_clock_is_seen_and_the_monotonic_one_is_not_moved(page: Page, run: Callable[..., str]) -> None:
    page.set(CLOCK, 10 * DAY_NS)
    wall, monotonic = json.loads(run("import time; print([time.time(), time.monotonic()])"))
    assert abs(wall - time.time() - 10 * 86_400) < 60
    assert abs(monotonic - time.monotonic()) < 60


def test_a_lost_network_fails_connections(page: Page, run: Callable[..., str]) -> None:
    assert run(LISTEN) == "connected"
    page.set(LOSS, 1)
    assert run(LISTEN) == "101"


def test_processes_of_a_round_are_found_by_their_mark() -> None:
    environment = {**os.environ, MARK: "abc", "DVC_STAGE": "teacher@internvl3"}
    started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], env=environment)
    deadline = time.monotonic() + 30
    while not list_processes("abc") and time.monotonic() < deadline:  # until the environment is that of the program
        time.sleep(0.05)
    (found,) = list_processes("abc")
    assert (found.pid, found.stage) == (started.pid, "teacher@internvl3")
    assert await_end("abc", 0.1) == [found]
    os.kill(started.pid, signal.SIGKILL)
    assert await_end("abc", 30) == []
    assert started.wait(30) == -signal.SIGKILL


def test_other_bytes_and_missing_stages_are_named() -> None:
    expected = {"pool": {"outs": [{"path": "data/pool", "md5": "1"}]}, "ril": {"outs": []}}
    assert compare_outs(expected, expected) == []
    assert compare_outs(expected, {"pool": {"outs": [{"path": "data/pool", "md5": "2"}]}}) == ["data/pool", "stage ril"]

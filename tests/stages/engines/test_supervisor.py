"""A server never outlives its stage: however the stage ends, and however the server's own processes hide."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.engines import supervisor as keeper
from stages.engines.engine import EngineError
from stages.engines.server import Server
from tests.living import is_alive

# A server as vLLM's is built: children in processes of their own, one in a session of its own, one orphaned; all
# ignore SIGTERM.
SERVER = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
start = "import subprocess as s, sys; print(s.Popen([sys.executable, '-c', %r], stdout=2, start_new_session=True).pid)"
orphan = start % child
pids = [subprocess.Popen([sys.executable, "-c", child], start_new_session=session).pid for session in (False, True)]
pids.append(int(subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, text=True).stdout))
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("loading", flush=True)
open(sys.argv[1] + ".new", "w").write(" ".join(map(str, [os.getpid(), *pids])))
os.rename(sys.argv[1] + ".new", sys.argv[1])
if sys.argv[2] == "dies":
    sys.exit("out of memory, say")
time.sleep(600)
"""
STAGE = """
import sys
from pathlib import Path
from stages.engines.server import Server
scratch = Path(sys.argv[2] + ".scratch")
scratch.mkdir()
Server([sys.executable, "-c", sys.argv[1], sys.argv[2], "stubborn"], Path(sys.argv[2] + ".log"), {}, scratch)
sys.stdin.read()
"""
# The same without the imports of the real thing, 6 s each: for trying many moments.
SHORT_STAGE = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[1], sys.argv[2], "polite"]
arguments = [sys.executable, "-I", KEEPER, str(os.getpid()), sys.argv[2] + ".scratch", *command]
subprocess.Popen(arguments, start_new_session=True)
print("started", flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


def pids_in(file: Path) -> list[int]:
    assert until(file.exists)
    found = [int(pid) for pid in file.read_text().split()]
    assert len(found) == 4
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[Server, Path]]]:
    started: list[Server] = []

    def begin(how: str = "polite") -> tuple[Server, Path]:
        file = tmp_path / "pids"
        started.append(
            Server([sys.executable, "-c", SERVER, str(file), how], tmp_path / "logs" / "server.log", {}, tmp_path)
        )
        return started[-1], file

    yield begin
    for server in started:
        server.stop()


def test_a_server_that_is_stopped_takes_all_its_processes_along(
    serve: Callable[..., tuple[Server, Path]], tmp_path: Path
) -> None:
    server, file = serve()
    pids = pids_in(file)
    assert all(is_alive(pid) for pid in pids)
    assert server.describe_exit() is None
    server.stop()
    assert not any(is_alive(pid) for pid in pids)
    assert "exit code 143" in str(server.describe_exit())
    assert tmp_path.exists()  # the stage lives, what it holds is its own


def test_a_server_that_dies_is_cleaned_up_and_its_last_words_are_told(
    serve: Callable[..., tuple[Server, Path]],
) -> None:
    server, file = serve("dies")
    pids = pids_in(file)
    with pytest.raises(EngineError, match=r"exit code 1.*server\.log:\n  loading\n  out of memory, say"):
        server.wait_until(lambda: False, 30)
    assert not any(is_alive(pid) for pid in pids)


def test_a_server_that_is_never_ready_is_told_of_in_time(serve: Callable[..., tuple[Server, Path]]) -> None:
    server, _ = serve()
    with pytest.raises(EngineError, match=r"not ready after 0\.5 s; raise start_seconds"):
        server.wait_until(lambda: False, 0.5)


def test_a_stage_that_is_killed_leaves_no_server(stage_of: Callable[..., Any], tmp_path: Path) -> None:
    """The servers ignore SIGTERM here, so that their keepers have to wait 10 s, both at once, and then to kill."""
    stages = {number: stage_of(STAGE, str(tmp_path / number.name)) for number in (signal.SIGKILL, signal.SIGTERM)}
    pids = {number: pids_in(tmp_path / number.name) for number in stages}
    for number, stage in stages.items():
        stage.send_signal(number)
        stage.wait(20)
    started = time.monotonic()
    for number, its in pids.items():
        assert until(lambda its=its: not any(is_alive(pid) for pid in its), 30), number.name  # type: ignore[misc]
        assert until(lambda number=number: not (tmp_path / f"{number.name}.scratch").exists())  # type: ignore[misc]
        print(f"{number.name}: all processes gone {time.monotonic() - started:.1f} s after the stage")


@pytest.fixture
def stage_of(root: Path) -> Iterator[Callable[..., Any]]:
    """Starts a process that starts a server, as a stage does."""
    started: list[Any] = []

    def begin(stage: str, mark: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", stage.replace("KEEPER", repr(keeper.__file__)), SERVER, mark]
        started.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield begin
    for stage in started:
        stage.kill()
        stage.wait(20)


def test_a_stage_that_is_killed_at_any_moment_leaves_no_server(stage_of: Callable[..., Any], tmp_path: Path) -> None:
    """Moments from before the keeper runs to after the server is up; every process that carries the mark must go."""
    for moment in range(12):
        mark = str(tmp_path / f"moment-{moment}")
        stage = stage_of(SHORT_STAGE, mark)
        assert stage.stdout.readline() == b"started\n"
        time.sleep(0.02 * moment)
        stage.kill()
        stage.wait(20)
        assert until(lambda mark=mark: not carrying(mark), 20), carrying(mark)  # type: ignore[misc]


def carrying(mark: str) -> list[str]:
    """Command lines of living processes that hold `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                line = (entry / "cmdline").read_text()
            except OSError:
                continue
            if mark in line:
                found.append(line)
    return found


def test_a_keeper_that_is_killed_takes_the_server_along(serve: Callable[..., tuple[Server, Path]]) -> None:
    server, file = serve()
    leader, *others = pids_in(file)
    os.kill(server.supervisor_pid, signal.SIGKILL)
    assert until(lambda: not is_alive(leader))
    for pid in others:  # nobody is left who could; a vLLM server's own processes watch their parent
        os.kill(pid, signal.SIGKILL)


def test_a_stopped_server_is_ended_with_all_that_it_started(
    serve: Callable[..., tuple[Server, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keeper.STOPPED_SECONDS, "1.5")
    server, file = serve("stubborn")
    pids = pids_in(file)
    os.kill(pids[2], signal.SIGSTOP)  # not the server itself: a worker in a session of its own
    assert until(lambda: server.describe_exit() is not None, 60)
    assert f"process {pids[2]} of this server has been stopped (SIGSTOP); ending the server" in server.read_tail()
    assert until(lambda: not any(map(is_alive, pids)))


def test_a_hanging_server_is_ended_and_says_why(serve: Callable[..., tuple[Server, Path]]) -> None:
    server, file = serve()
    pids = pids_in(file)
    server.end_hanging("no token for 9 s")
    assert str(server.describe_exit()).startswith("no token for 9 s, so it hangs and was ended; the end of ")
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(("interface", "passed"), [("lo", None), ("ib0", "ib0")])
def test_a_server_does_not_talk_over_the_interface_of_the_ranks(
    interface: str, passed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks on one machine have "lo"; a judge over Ray would look for other machines there. A user's choice stays."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    for name in names:
        monkeypatch.setenv(name, interface)
    monkeypatch.setenv("RIL_ALL_DEVICES", "0,1")
    code = "import os; print([os.environ.get(name) for name in ('NCCL_SOCKET_IFNAME', 'GLOO_SOCKET_IFNAME')])"
    code += "; print(os.environ.get('RIL_ALL_DEVICES'))"
    server = Server([sys.executable, "-c", code], tmp_path / "log", {}, tmp_path / "scratch")
    with pytest.raises(EngineError, match="exit code 0"):
        server.wait_until(lambda: False, 30)
    assert server.log.read_text().splitlines() == [str([passed] * 2), "None"]

"""Time limits: what counts as standing still, and that a process whose work never returns ends by itself."""

import signal
import subprocess
import sys
import time

import pytest

from stages.job import silence
from stages.job.silence import Silence, is_stopped

HANGS = """
import ctypes, sys
from stages.job.silence import WorkLimit
limit = WorkLimit(0.5, "the test has been sleeping")
for _ in range(3):
    with limit.watch():
        pass
if sys.argv[1] == "idle":
    __import__("time").sleep(1.5)  # between pieces of work nothing is measured
    sys.exit(7)
with limit.watch():
    ctypes.CDLL(None).sleep(60)  # C code, deaf to exceptions
"""


def run_limited(how: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", HANGS, how], capture_output=True, text=True, timeout=60)


def test_work_that_never_returns_ends_the_process_with_a_line() -> None:
    done = run_limited("hangs")
    assert done.returncode == 1
    assert done.stderr == "error: the test has been sleeping for 1 s; it hangs, so this process ends\n"


def test_a_process_without_work_is_left_alone() -> None:
    done = run_limited("idle")
    assert (done.returncode, done.stderr) == (7, "")


def test_silence_grows_while_a_value_stays_and_ends_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Silence()
    measured = []
    for seconds, value in ((0, "a"), (10, "a"), (10, "a"), (10, "b"), (10, "b")):
        now[0] += seconds
        measured.append(watch.measure(value))
    assert measured == [0, 10, 20, 0, 10]


def test_time_in_which_the_watcher_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Silence()
    watch.measure("a")
    now[0] += silence.PAUSE_SECONDS + 1
    assert watch.measure("a") == 0


def test_a_stopped_process_is_told_from_one_that_sleeps_and_one_that_has_ended() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not is_stopped(sleeper.pid)
        sleeper.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 20
        while not is_stopped(sleeper.pid):
            assert time.monotonic() < end
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not is_stopped(sleeper.pid)

"""Ranks that stand still are named; ranks that are busy are not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.rank_watch import RankReport, RankWatch, read_reports

HERE = os.uname().nodename


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that is read; tests move it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def look(watch: RankWatch, clock: list[float], seconds: float, *reports: RankReport) -> tuple[int, str] | None:
    """Looks every 10 seconds at ranks that do not move."""
    found = None
    for _ in range(int(seconds / 10)):
        found = watch.find_still(dict(enumerate(reports)))
        clock[0] += 10
    return found


def report(meetings: int, waits: bool) -> RankReport:
    return RankReport(HERE, os.getpid(), meetings, waits)


def test_a_stopped_rank_is_named_within_two_minutes(clock: list[float], sleeper: "subprocess.Popen[bytes]") -> None:
    watch = RankWatch(60, 1800, 7200)
    ranks = (report(5, False), RankReport(HERE, sleeper.pid, 5, True), report(5, True))
    assert look(watch, clock, 100, *ranks) is None
    sleeper.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()
    assert look(watch, clock, 50, *ranks) is None
    assert look(watch, clock, 50, *ranks) == (1, "has been stopped (SIGSTOP) for 90 s")


@pytest.mark.parametrize("waits", [[True, False, True], [True, True, False]], ids=["second", "third"])
def test_a_rank_for_which_all_others_wait_is_named(clock: list[float], waits: list[bool]) -> None:
    watch, ranks = RankWatch(60, 600, 7200), [report(5, wait) for wait in waits]
    assert look(watch, clock, 590, *ranks) is None
    found = look(watch, clock, 100, *ranks)
    assert found is not None
    assert found[0] == waits.index(False)
    assert "while all others wait for it" in found[1]


def test_the_first_rank_may_work_alone_for_longer_but_not_for_ever(clock: list[float]) -> None:
    """It samples, judges and validates while the others wait."""
    watch, ranks = RankWatch(60, 600, 7200), (report(5, False), report(5, True), report(5, True))
    assert look(watch, clock, 7190, *ranks) is None
    found = look(watch, clock, 30, *ranks)
    assert found is not None
    assert found[0] == 0
    assert "has made no progress for 7210 s while all others wait for it" in found[1]


def test_two_busy_ranks_are_no_reason_to_end(clock: list[float]) -> None:
    ranks = (report(5, True), report(5, False), report(5, False))
    assert look(RankWatch(60, 600, 7200), clock, 50_000, *ranks) is None


def test_progress_starts_the_count_again(clock: list[float]) -> None:
    watch = RankWatch(60, 600, 7200)
    for meetings in range(20):
        assert look(watch, clock, 500, report(meetings, True), report(meetings, False)) is None


def test_when_all_wait_the_farthest_behind_is_named(clock: list[float]) -> None:
    found = look(RankWatch(60, 600, 7200), clock, 700, report(9, True), report(9, True), report(7, True))
    assert found is not None
    assert found[0] == 2
    assert "waits like all others" in found[1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": 1}', "\x00"])
def test_a_report_that_is_being_written_is_passed_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(content)
    assert read_reports(tmp_path) == {}

"""What a job and its submitter tell each other: exit codes, and signs of life."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from flows.slurm import exchange as module
from flows.slurm.exchange import Exchange, run_in_job


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    """That of a job, number 7, which this process is."""
    monkeypatch.setenv("RIL_JOB", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    return Exchange(tmp_path)


def stop() -> int:
    raise SystemExit(143)


def fail() -> int:
    raise RuntimeError("a fault")


def test_the_exit_code_is_left_for_the_submitter_however_the_stage_ends(exchange: Exchange) -> None:
    assert exchange.read_result(7) is None
    assert run_in_job(lambda: 3) == 3
    assert exchange.read_result(7) == 3
    with pytest.raises(SystemExit):
        run_in_job(stop)
    assert exchange.read_result(7) == 143
    with pytest.raises(RuntimeError):
        run_in_job(fail)
    assert exchange.read_result(7) == 1
    assert exchange.read_result(8) is None, "another job's"


def test_a_job_whose_submitter_is_silent_is_told_to_stop(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    monkeypatch.setattr(module, "LOST_SECONDS", 0.5)

    def work() -> int:
        time.sleep(1.0)
        return 0

    with exchange.renew_beat():
        run_in_job(work)
    assert sent == [], "its submitter lives"
    run_in_job(work)
    assert sent == [(os.getpid(), signal.SIGTERM)], "once"
    assert "whoever submitted job 7 gives no sign of life" in capsys.readouterr().err


def test_two_submitters_one_after_the_other_have_different_signs_of_life(exchange: Exchange) -> None:
    seen = set()
    for _ in range(2):
        with exchange.renew_beat():
            time.sleep(0.05)
        seen.add(exchange.read_beat().split()[0])
    assert len(seen) == 2


def test_a_job_that_looks_at_once_finds_a_sign_of_life(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "repeat_work", lambda *_: contextlib.nullcontext())
    with exchange.renew_beat():
        assert exchange.read_beat()

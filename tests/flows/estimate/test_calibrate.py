"""`ril plan --measure`: a real Trainer and a real engine, smaller than for users; and what a failed part says."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.estimate import calibrate
from flows.estimate.calibrate import time_engine, time_trainer
from flows.estimate.cards import name_machine
from flows.estimate.past import read_calibration
from stages.job.failure import Failure

# As a machine would give them that computes 1e10 operations a second, beside 0.5 s a step, 1 ms a token.
PARTS: dict[str, dict[str, object]] = {
    "imports": {},
    "trainer": {"seconds": [1.5, 3.5], "flops": [1e10, 3e10], "start_seconds": 12.0},
    "small engine": {"seconds": 2.0, "tokens": 2000, "flops": 0.0, "start_seconds": 20.0},
    "large engine": {"seconds": 3.0, "tokens": 1000, "flops": 2e10, "start_seconds": 25.0},
}


def test_coefficients_come_from_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_run_part", PARTS.__getitem__)
    said: list[str] = []
    found = calibrate.calibrate(tmp_path, said.append)
    assert (found.train_flops, found.step_seconds) == (1e10, 0.5)
    assert (found.token_seconds, found.engine_flops) == (0.001, 1e10)
    assert (found.train_start_seconds, found.engine_start_seconds) == (12.0, 20.0)
    assert read_calibration(tmp_path, name_machine()) == found
    assert read_calibration(tmp_path, "another") is None
    assert said[-1].startswith("measured in")


def test_a_part_that_fails_is_one_line(make_project: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "false")
    with pytest.raises(Failure, match="measuring: imports failed: "):
        calibrate.calibrate(tmp_path, print)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", "--measure"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "error: measuring: imports failed" in result.output


@pytest.mark.slow
def test_a_trainer_and_an_engine_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "LARGE", calibrate.SMALL)
    trained = time_trainer()
    assert 0 < trained["seconds"][0] < trained["seconds"][1]
    assert trained["flops"][1] > 3 * trained["flops"][0]
    assert trained["worked"] > 2 * sum(trained["seconds"])  # each is timed twice, after one that is not
    found = time_engine(calibrate.SMALL, 4)
    assert 4 <= found["tokens"] <= 4 * calibrate.ANSWER_TOKENS
    assert 0 < found["seconds"] < found["worked"]

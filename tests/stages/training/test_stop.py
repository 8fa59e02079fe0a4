"""A request to stop: how long a step has, and what is kept of one that takes longer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stages.config.runtime import Runtime
from stages.job.files import read_json
from stages.job.stop import Stop
from stages.training.state import find_interval
from tests.stages.training.test_state import results

# Runs stage `ril`, notes what its engines are asked, and makes the update of the third step take its time.
SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path.cwd()))
import flows.run
from stages.engines.vllm import VllmEngine
from stages.policy.policy import Policy

asked, seconds = Path(sys.argv[1]), float(sys.argv[2])
generate, update = VllmEngine.generate, Policy.update
calls = []

def note(self, requests):
    with asked.open("a") as file:
        file.writelines(f"{self.checkpoint.folder.name} {one.name} {one.seed} {one.n}\\n" for one in requests)
    return generate(self, requests)

def wait(self, *arguments):
    calls.append(0)
    if len(calls) == 3 and seconds:
        print("in the update", file=sys.stderr, flush=True)
        time.sleep(seconds)
    return update(self, *arguments)

VllmEngine.generate, Policy.update = note, wait
try:
    sys.exit(flows.run.main(["ril"]))
finally:  # as the command does
    flows.run.cancel_alarms()
"""


@pytest.mark.parametrize(
    ("grace", "save", "step"),
    [(25, 0, 15), (25, 5, 7.5), (25, 60, 1), (5, 0, 2), (300, 60, 200), (3600, 90, 3455)],
)
def test_a_step_leaves_time_to_save(grace: float, save: float, step: float) -> None:
    stop = Stop()
    stop.grace_seconds, stop.save_seconds = grace, save
    assert stop.step_seconds == step


@pytest.mark.parametrize(
    ("minutes", "share", "save", "seconds"),
    [(10, 0.05, 0, 600), (10, 0.05, 20, 600), (10, 0.05, 90, 1710), (10, 0.5, 90, 600), (0, 0.05, 90, 0)],
)
def test_checkpoints_take_their_share_of_the_time(minutes: float, share: float, save: float, seconds: float) -> None:
    """176 GB for two models of 7B take 90 s: 15 % of the time at every ten minutes."""
    found = find_interval(Runtime(checkpoint_minutes=minutes, checkpoint_share=share), save)
    assert found == pytest.approx(seconds)
    assert not minutes or save / (save + found) <= share + 1e-9


@pytest.mark.slow
@pytest.mark.alone
def test_a_step_longer_than_the_grace_resumes_from_its_recorded_rollouts(
    training_project: Path, tmp_path: Path
) -> None:
    params = yaml.safe_load((training_project / "params.yaml").read_text())
    params["runtime"] |= {"grace_seconds": 5.0}
    params["ril"]["steps"] = 4
    (training_project / "params.yaml").write_text(yaml.safe_dump(params))

    def start(name: str, asked: Path, seconds: float) -> "subprocess.Popen[str]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MASTER_")}
        environment |= {"RIL_STORE": str(tmp_path / name), "PYTHONPATH": str(training_project)}
        words = [sys.executable, "-c", SLOW, str(asked), str(seconds)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=training_project, env=environment, stderr=pipe, stdout=pipe, text=True)

    stopped = start("store", tmp_path / "asked", 30.0)
    assert stopped.stderr
    said = list[str]()
    while "in the update" not in (line := stopped.stderr.readline()):
        assert line, said
        said.append(line)
    begun = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    err = stopped.communicate(timeout=60)[1]
    took = time.monotonic() - begun
    assert stopped.returncode == 143, err
    assert "stopping after this step, or in 2 s" in err
    print(f"ended {took:.1f} s after SIGTERM")
    assert took < 10, "5 s and what a busy machine adds"
    (record,) = (tmp_path / "store" / "runs" / "ril").glob("*/recorded/*.json")
    assert record.name == "step_00000003.json"
    assert read_json(record)

    for name, asked in (("store", tmp_path / "asked"), ("another", tmp_path / "undisturbed")):
        process = start(name, asked, 0.0)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert ("resumes after step 2" in err) == (name == "store")
        if name == "store":
            resumed = results(training_project, "ril")
    assert results(training_project, "ril") == resumed
    assert sorted((tmp_path / "asked").read_text().split("\n")) == sorted(
        (tmp_path / "undisturbed").read_text().split("\n")
    ), "no answer and no verdict is paid for twice"

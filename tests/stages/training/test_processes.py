"""Training stages in several processes by their real command: how they end, whoever ends them, and that nobody stays
behind.
"""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.engines.supervisor import list_descendants
from stages.job.files import read_json, read_shards
from stages.training.state import list_complete_checkpoints

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT = 240.0  # seconds; a starved machine takes a minute for what takes 10 s


def change(project: Path, **blocks: dict[str, Any]) -> None:
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, values in blocks.items():
        params[name] |= values
    path.write_text(yaml.safe_dump(params))


def until(condition: Callable[[], Any], process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    """Whether none of these processes is alive; a zombie is not."""
    return not [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and "Z" not in _state(pid)]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.slow
def test_no_rank_outlives_the_others(training_project: Path, tmp_path: Path, start: Start) -> None:
    change(
        training_project, warm_start={"steps": 100_000, "warmup_steps": 0}, runtime={"processes": 2, "zero_stage": 2}
    )
    store = tmp_path / "store"

    def checkpoints() -> list[str]:
        return [path.name for folder in store.glob("runs/warm_start/*") for path in list_complete_checkpoints(folder)]

    def training() -> tuple["subprocess.Popen[str]", list[int]]:
        """The stage when it has saved once more than before, and its other ranks."""
        before = checkpoints()
        process = start(training_project, "flows.run", "warm_start", RIL_STORE=str(store))
        until(lambda: checkpoints() and checkpoints() != before, process)
        return process, list_descendants(process.pid)

    process, others = training()
    assert len(others) == 1
    os.kill(others[0], signal.SIGKILL)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1
    assert "rank 1 ended with exit code -9" in said
    assert gone(others)

    process, others = training()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 143, said
    assert "resumes after step" in said
    assert "stopped after step" in said
    assert gone(others)
    (folder,) = store.glob("runs/warm_start/*")
    shards = [path.name[:10] for path in (list_complete_checkpoints(folder)[-1] / "model").iterdir()]
    assert sorted(shards) == ["rank_00000", "rank_00001"], "each rank its own"

    process, others = training()
    process.kill()
    process.communicate(timeout=LIMIT)
    until(lambda: gone(others))

    change(training_project, runtime={"processes": 1, "zero_stage": 0})
    process, others = training()
    assert others == []
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 143, said
    assert "resumes after step" in said, "with another number of ranks and another ZeRO stage"


@pytest.mark.slow
def test_ril_in_two_processes(training_project: Path, tmp_path: Path, start: Start) -> None:
    """The whole stage: both models under ZeRO-3, the student's engine in a process of its own, weights pushed into
    it.
    """
    whole = {
        "max_tokens": 12,
        "pattern": "[a-z]{1,8}",
    }  # else random weights write until they are cut, and D reads no cut answer
    loop = {"objective": "adversarial", "steps": 2, "validation_every": 2, "sampling": whole}
    change(training_project, ril=loop, runtime={"processes": 2, "zero_stage": 3, "checkpoint_minutes": 10.0})
    process = start(training_project, "flows.run", "ril", RIL_STORE=str(tmp_path / "store"))
    said = process.communicate(timeout=2 * LIMIT)[1]
    assert process.returncode == 0, said
    assert "ril: trains in 2 processes, ZeRO 3" in said
    with (training_project / "reports" / "ril" / "history.csv").open() as handle:
        history = list(csv.DictReader(handle))
    assert len(history) == 2
    assert all(float(row["grad_norm"]) > 0 and float(row["disc/grad_norm"]) > 0 for row in history)
    assert len(read_shards(training_project / "data" / "ril" / "samples").to_pylist()) == 8
    assert read_json(training_project / "reports" / "ril" / "metrics.json")["validation"]["kept_step"] in (0, 2)

    from safetensors.torch import load_file

    trained = load_file(training_project / "data" / "ril" / "model" / "model.safetensors")
    given = load_file(training_project / "data" / "warm_start" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in trained.items()} == {
        name: tensor.shape for name, tensor in given.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0], ids=["another rank", "the first rank"])
def test_a_stopped_rank_is_named_and_ends_the_stage_with_its_checkpoint(
    rank: int, training_project: Path, tmp_path: Path, start: Start
) -> None:
    change(
        training_project,
        warm_start={"steps": 100_000, "warmup_steps": 0},
        runtime={"processes": 2, "zero_stage": 2, "stopped_seconds": 3.0},
    )
    store = tmp_path / "store"
    process = start(training_project, "flows.run", "warm_start", RIL_STORE=str(store))
    until(lambda: list(store.glob("runs/warm_start/*/step_*/DONE")), process)
    others = list_descendants(process.pid)
    stopped = others[0] if rank else process.pid
    os.kill(stopped, signal.SIGSTOP)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == (1 if rank else -signal.SIGKILL), said
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert f"warm_start: rank {rank} (process {stopped}" in line
    assert "has been stopped (SIGSTOP) for " in line
    (folder,) = store.glob("runs/warm_start/*")
    last = list_complete_checkpoints(folder)[-1]
    assert f"the last checkpoint is kept: {last}" in line
    until(lambda: gone(others))


@pytest.mark.slow
def test_a_hanging_rank_is_named(training_project: Path, tmp_path: Path, start: Start) -> None:
    change(
        training_project,
        warm_start={"steps": 100_000, "warmup_steps": 0},
        runtime={"processes": 2, "stopped_seconds": 2.0, "stuck_minutes": 0.5},  # ranks start up to 10 s apart
    )
    with (training_project / "stages" / "warm_start.py").open("a") as file:
        file.write(
            "\nimport os, time\n_share = Ranks.share\ndef _hang(self, items, cost):\n"
            "    if self.rank == 1 and os.path.exists('hang'):\n        time.sleep(3600)\n"
            "    return _share(self, items, cost)\nRanks.share = _hang\n"
        )
    code = training_project / "stages" / "warm_start.py"
    code.write_text(code.read_text().replace("import get_ranks\n", "import Ranks, get_ranks\n", 1))
    process = start(training_project, "flows.run", "warm_start", RIL_STORE=str(tmp_path / "store"))
    until(lambda: list((tmp_path / "store").glob("runs/warm_start/*/step_*/DONE")), process)
    (training_project / "hang").touch()
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1
    assert "error: warm_start: rank 1 (process " in said
    assert "has made no progress for " in said
    assert "while all others wait for it; the last checkpoint is kept: " in said

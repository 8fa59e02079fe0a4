"""tests/gpu/run on a machine without a GPU: it says so, and with tiny shapes every one of its paths runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.ledger import Figures, Ledger

NO_GPU = 3


def bench(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "tests/gpu/run"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(root: Path) -> None:
    done = bench(root)
    assert done.returncode == NO_GPU
    assert "No GPU here: nothing was measured" in done.stdout


@pytest.mark.slow
def test_every_path_runs_with_tiny_shapes(root: Path, tmp_path: Path) -> None:
    done = bench(root, "--tiny", "--repeats", "1", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [*figures] == ["machine", "head", "weights", "tiny LoRA", "tiny whole"], "the cheapest first"
    ways = ["one mask", "split", "sdpa", "merged"]
    expected = ["models", "one update of the loop", "ways of attending agree", "shared prompt"]
    expected += [*(f"shared prompt, {way}" for way in ways)]
    expected += ["repeated prompt, 1 row a pack", "repeated prompt, 8 rows a pack"]
    assert [*figures["tiny LoRA"]] == [*figures["tiny whole"]] == expected
    loop = figures["tiny LoRA"]["one update of the loop"]
    assert loop["seconds"] == pytest.approx(loop["discriminator_seconds"] + loop["policy_seconds"])
    assert figures["tiny LoRA"]["models"]["trained"] < figures["tiny whole"]["models"]["trained"]
    assert "flex" in figures["tiny LoRA"]["ways of attending agree"]


def test_out_of_memory_is_a_result_and_each_figure_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    ledger = Ledger(path, minutes=1)

    def fill() -> Figures:
        assert json.loads(path.read_text())["3B"]["cheap"]["seconds"] == 1.0
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 GiB. GPU 0 has")

    def fail() -> Figures:
        raise RuntimeError("a kernel is missing\nlong explanation")

    ledger.measure("3B", "cheap", lambda: {"seconds": 1.0})
    ledger.measure("3B", "large", fill)
    assert not ledger.failed
    ledger.measure("3B", "broken", fail)
    assert ledger.failed
    ledger._end = 0.0
    ledger.measure("7B", "late", fill)
    found = json.loads(path.read_text())
    assert found["3B"]["large"]["out_of_memory"] == "CUDA out of memory"
    assert found["3B"]["broken"]["failed"] == "RuntimeError: a kernel is missing"
    assert found["7B"]["late"] == {"not_measured": "the time was up"}

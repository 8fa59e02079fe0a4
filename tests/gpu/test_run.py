"""tests/gpu/run on a machine without a GPU: it says so, and with tiny shapes every one of its paths runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    ways = {"shared prompt", "repeated prompt, 8 rows a pack", "repeated prompt, 1 row a pack"}
    others = {f"shared prompt, {way}" for way in ("one mask", "split", "sdpa", "merged")}
    assert figures["tiny whole"].keys() == figures["tiny LoRA"].keys() == ways | others
    assert figures["head"][0]["full logits, answers"]["seconds"] > 0
    assert "flex: largest difference of a log-prob" in done.stdout

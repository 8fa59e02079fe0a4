"""The short form of tests/performance/store_scale.py: memory and index of a stage that has everything stored."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_projecting_takes_little_memory_and_no_time_worth_mentioning(root: Path) -> None:
    """32,000 answers; the bar is 50,000 answers/s on a quiet machine, and here a fifth of it, in CPU time."""
    command = [sys.executable, str(root / "tests/performance/store_scale.py"), "--questions", "2000"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr  # 1 GiB, 64 bytes an answer
    found = re.search(r"2000 questions x 16: .* (\d+) by CPU time; index ([\d.]+) bytes", result.stdout)
    assert found, result.stdout
    assert int(found[1]) > 10_000
    assert float(found[2]) == 2.0

"""The console shows lines of the stages alone: libraries that warn or announce themselves are quiet at their source."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.job.job import Job

# Lines that name their stage, titles and indented rows of tables, and what an untrained discriminator is told. Further
# lines of a foreign message may be indented too; its first line is not.
OURS = re.compile(
    r"(warning: )?(discriminator|ril|RIL)(, [a-z ]+)?: .*|discriminator on held-out questions|held-out accuracy is .*|"
    r"validation|  .*"
)


@pytest.mark.slow
def test_stages_print_only_their_own_lines(
    loop_project: Callable[[str, Mapping[str, Any]], Job],
    loop_params: Mapping[str, Any],
    copy_project: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Training with DeepSpeed, and two engines of vLLM (student and judge) in one process, in the shell of a user."""
    copy_project(tmp_path, loop_params)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHONPATH": str(tmp_path), "RIL_STORE": str(tmp_path / "store"), "DVC_STAGE": "of dvc"}
    for stage in ("discriminator", "ril"):
        command = [sys.executable, "-m", "flows.run", stage]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert f"{stage}: done in" in done.stderr
        assert [line for line in done.stderr.splitlines() if not OURS.fullmatch(line)] == []

"""Free memory: the machine's, and that of every control group of the process."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.job import host_memory


def test_memory_is_that_of_the_machine_and_of_every_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of Slurm has a limit that its step, in a group below, does not show."""
    step = tmp_path / "groups" / "job_1" / "step_0"
    step.mkdir(parents=True)
    (tmp_path / "own").write_text("1:name=systemd:/\n0::/job_1/step_0\n")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host_memory, "OWN_GROUP", tmp_path / "own")
    machine = 10**9
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=machine))
    (step / "memory.max").write_text("max\n")
    assert host_memory.measure_free_memory() == machine
    (step.parent / "memory.max").write_text("5000\n")
    (step.parent / "memory.current").write_text("1500\n")
    (step.parent / "memory.stat").write_text("anon 7\ninactive_file 500\n")
    assert host_memory.measure_free_memory() == 4000
    (tmp_path / "own").unlink()
    assert host_memory.measure_free_memory() == machine

"""The commands of docs/scaling.md for several machines, executed here: torchrun's agents, and a stand-in for srun."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed import distributed_c10d

from flows.profile import read_profile
from flows.rank_places import find_first_node, find_launched_device, map_slurm_variables
from stages.config.runtime import Runtime
from stages.config.yaml import merge_params
from stages.job.failure import Failure
from stages.training import ranks
from tests.faults.pretended_gpus import pretend_gpus, read_seen

LIMIT = 240.0  # seconds; three ranks on two busy cores need 50
LOOP = {"steps": 1, "warmup_steps": 0, "validation_every": 1, "questions_per_step": 2}
STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "12",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}


def read_commands(root: Path, program: str) -> list[list[str]]:
    """Returns the lines of docs/scaling.md that call `program`, as words."""
    text = (root / "docs" / "scaling.md").read_text().partition("## Several machines")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


def make_smaller(words: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    """Returns the command with other values; every change must be one of something that stands there."""
    assert changes.keys() <= set(words)
    return [changes.get(word, word) for word in words]


def run_together(project: Path, commands: Sequence[Sequence[str]]) -> None:
    """Runs the commands at the same time, as on machines of their own, on eight pretended GPUs each."""
    left_out = ("DVC_STAGE", "DVC_ROOT", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(project), "RIL_STORE": str(project / "store"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(words, cwd=project, env=environment, **pipes) for words in commands]
    try:
        for process in started:
            said = process.communicate(timeout=LIMIT)[0]
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()


@pytest.fixture
def paper_project(training_project: Path, root: Path) -> Path:
    """A project with the arrangement of the paper, eight pretended GPUs, and one step of the loop."""
    path = training_project / "params.yaml"
    overlay = {"ril": LOOP, "runtime": read_profile(root, "paper")["runtime"] | {"gradient_checkpointing": False}}
    path.write_text(yaml.safe_dump(merge_params(yaml.safe_load(path.read_text()), overlay)))
    pretend_gpus(training_project, 8)
    return training_project


def list_rank_devices(project: Path) -> dict[int, str | None]:
    return {int(one.environment["RANK"]): one.devices for one in read_seen(project) if one.model is None}


@pytest.mark.slow
def test_torchrun_on_two_machines_as_the_page_says(paper_project: Path, root: Path) -> None:
    commands = read_commands(root, "torchrun")
    assert len(commands) == 2
    smaller = {"node1": "127.0.0.1", "flows.run": "pretended_stage", "29500": "29517"}
    first, second = (
        make_smaller(words, smaller | {count: few})
        for words, count, few in zip(commands, ("6", "8"), ("1", "2"), strict=True)
    )
    run_together(paper_project, [first, second])
    assert list_rank_devices(paper_project) == {0: "2", 1: "0", 2: "1"}, "engines have GPUs 0 and 1 of the first only"
    assert {one.model: one.devices for one in read_seen(paper_project) if one.model} == {"student": "0", "judge": "1"}


@pytest.mark.slow
def test_srun_on_two_nodes_as_the_page_says(paper_project: Path, root: Path) -> None:
    (words,) = read_commands(root, "srun")
    stand_in = [sys.executable, str(root / "tests" / "faults" / "srun.py")]
    run_together(paper_project, [stand_in + make_smaller(words, {"6": "1", "flows.run": "pretended_stage"})[1:]])
    assert list_rank_devices(paper_project) == {0: "2", 1: "0"}
    assert (paper_project / "data" / "ril" / "model" / "model.safetensors").exists()


def test_a_task_of_srun_has_the_variables_of_torchrun() -> None:
    assert map_slurm_variables(STEP) == {
        "RANK": "9",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "3",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "20087",
    }
    given = map_slurm_variables(STEP | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert {"MASTER_ADDR", "MASTER_PORT"}.isdisjoint(given)
    ports = {map_slurm_variables(STEP | {"SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(1000)}
    assert len(ports) == 1000


def test_a_batch_script_and_a_single_task_are_no_ranks() -> None:
    script = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")}
    assert map_slurm_variables(script) == {}, "`dvc repro` in a batch script is one process, whatever SLURM_NTASKS says"
    assert map_slurm_variables(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert map_slurm_variables(STEP | {"RANK": "0"}) == {}, "another launcher inside of the step"
    assert map_slurm_variables({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[003-004,007],big1", "node003"),
        ("a-b[1,3-9]", "a-b1"),
        ("big1,node[3-4]", "big1"),
        ("rack[1-2]n", "rack1n"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert find_first_node(nodes) == first


def test_a_list_without_a_host_is_refused_with_the_remedy() -> None:
    with pytest.raises(Failure, match="names no host; set MASTER_ADDR"):
        find_first_node("")


def test_collective_operations_wait_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A little longer than the watch over ranks, which names the one that hangs."""
    found: list[tuple[timedelta, object]] = []
    monkeypatch.setattr(distributed_c10d, "_set_pg_timeout", lambda limit, group=None: found.append((limit, group)))
    monkeypatch.setattr(ranks, "_groups", {"steps": "gloo"})
    runtime = Runtime()
    ranks.limit_waits(timedelta(minutes=runtime.stuck_minutes), timedelta(minutes=runtime.first_rank_minutes))
    assert found == [(timedelta(minutes=32), None), (timedelta(minutes=242), "gloo")]
    assert timedelta(minutes=30) == ranks.START_WAIT


def test_a_launched_rank_gets_the_gpu_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(rank_gpus={"ril": (2, 3)})
    monkeypatch.delenv("RIL_ALL_DEVICES", raising=False)

    def find(count: int, local: int, machine: str | None = None, visible: str | None = None) -> str | None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name, value in (("GROUP_RANK", machine), ("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", str(local))):
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        return find_launched_device("ril", runtime).get("CUDA_VISIBLE_DEVICES")

    assert find(0, 1) is None
    assert find(4, 1) == "3"
    assert find(4, 1, machine="1") == "1"
    assert find(4, 1, visible="9,8,7,6") == "6"
    assert find(1, 3, visible="5") == "5", "srun --gpus-per-task 1 has chosen"
    with pytest.raises(Failure, match="process 3 on this machine, which has 2 GPUs for ranks"):
        find(4, 2)

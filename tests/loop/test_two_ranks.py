"""The same with two ranks over gloo: the loop against the plain one, the other stages against one rank."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from stages import discriminator, warm_start
from tests.loop.checks import (
    check_judge,
    check_plain,
    check_questions,
    check_rows,
    check_validation,
    compare,
    compare_critics,
)
from tests.loop.plain_models import Vlm
from tests.loop.recording import Recording, record_loop
from tests.loop.settings import DISCRIMINATOR, SETTINGS, WARM_START
from tests.loop.world import make_job, write_adapter, write_scorers

# `runtime` of each
LOOPS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl, mu 1": {"zero_stage": 3, "reference": "sharded", "optimizer_states": "swapped"},
    "internvl3, mu 2": {"zero_stage": 2, "reference": "offloaded", "optimizer_states": "offloaded"},
    "adapters of student and D on one model": {"zero_stage": 3},
    "opd, two teachers": {"zero_stage": 2},
    "an adapter of D alone, beside the reference": {"zero_stage": 3},
}
STAGES: dict[str, tuple[ModuleType, str, Mapping[str, Any]]] = {
    "warm_start": (warm_start, "qwen2_5_vl", {"warm_start": WARM_START}),
    "discriminator": (
        discriminator,
        "internvl3",
        {"discriminator": DISCRIMINATOR, "ril": {"objective": "adversarial"}},
    ),
}
RANKS, LIMIT = 2, 240  # seconds until ranks count as hung


def run_rank(rank: int, folder: Path) -> None:
    """One rank of all runs; what each does is in a folder of its name."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for name, runtime in LOOPS.items():
        overlay = {**SETTINGS[name].params, "runtime": runtime}
        recording = record_loop(make_job("ril", folder / name, overlay))
        if rank == 0:
            torch.save(recording, folder / f"{name}.pt")
    for name, (stage, _, overlay) in STAGES.items():
        stage.run(make_job(name, folder / name, {**overlay, "runtime": {"zero_stage": 2}}))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(built_worlds: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs with two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in LOOPS:
        shutil.copytree(built_worlds(SETTINGS[name].family), folder / name)
        if SETTINGS[name].recipe.critic_adapter is not None:
            write_adapter(folder / name / "data" / "warm_start", folder / name / "data" / "discriminator")
        if SETTINGS[name].recipe.scorers:
            write_scorers(folder / name, SETTINGS[name].family)
    for name, (_, family, _) in STAGES.items():
        shutil.copytree(built_worlds(family), folder / name)
    context = mp.spawn(run_rank, (folder,), nprocs=RANKS, join=False)
    assert context is not None
    if not context.join(timeout=LIMIT) and not context.join(timeout=LIMIT):
        for process in context.processes:
            process.kill()
        pytest.fail("the ranks hang")
    return folder


@pytest.mark.parametrize("name", list(LOOPS))
def test_two_ranks_do_what_the_paper_says(name: str, two_ranks: Path) -> None:
    recipe = SETTINGS[name].recipe
    recording: Recording = torch.load(two_ranks / f"{name}.pt", weights_only=False)
    check_questions(recording, recipe)
    check_rows(recording, two_ranks / name, recipe)
    check_judge(recording, recipe)
    check_plain(recording, two_ranks / name, recipe)
    check_validation(recording, two_ranks / name, recipe)


def test_two_ranks_make_the_warm_start_of_one(two_ranks: Path, make_world: Callable[[str], Path]) -> None:
    stage, family, overlay = STAGES["warm_start"]
    folder = make_world(family)
    stage.run(make_job("warm_start", folder, overlay))
    found, alone, start = (
        Vlm(place).net.state_dict()
        for place in (
            two_ranks / "warm_start" / "data" / "warm_start",
            folder / "data" / "warm_start",
            folder / "data" / "model" / "student",
        )
    )
    compare(found, alone, start)


def test_two_ranks_make_the_discriminator_of_one(two_ranks: Path, make_world: Callable[[str], Path]) -> None:
    stage, family, overlay = STAGES["discriminator"]
    folder = make_world(family)
    stage.run(make_job("discriminator", folder, overlay))
    found, alone = (
        load_file(place / "data" / "discriminator" / "discriminator.safetensors")
        for place in (two_ranks / "discriminator", folder)
    )
    student = Vlm(folder / "data" / "warm_start").net.model.language_model.state_dict()
    start = {f"text.{name}": value for name, value in student.items()}
    text = {name: value for name, value in found.items() if name in start}
    compare_critics(text, {name: alone[name] for name in text}, start, pairs=True)
    assert torch.allclose(found["score.weight"], alone["score.weight"], atol=1e-6)

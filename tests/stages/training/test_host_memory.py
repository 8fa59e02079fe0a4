"""AdamW's state and the reference in host memory: what is learned stays the same, and every setting resumes another."""

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.config.runtime import OptimizerPlace, Runtime
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer
from tests.stages.training.spawned import run_ranks
from tests.stages.training.test_fragments import AFTER, BEFORE, SCHEDULE, make_model, train

SETTINGS: list[tuple[int, OptimizerPlace]] = [
    (2, "resident"),
    (1, "swapped"),
    (2, "swapped"),
    (3, "swapped"),
    (2, "offloaded"),
    (3, "offloaded"),
]
# Keys that pass through: small buckets and groups, so that each of them acts on a model of 300 weights.
KEYS = {"reduce_bucket_size": 50, "allgather_bucket_size": 50, "sub_group_size": 60, "overlap_comm": False}
KEYS |= {"stage3_param_persistence_threshold": 4, "stage3_prefetch_bucket_size": 0, "contiguous_gradients": False}
LIMIT = 300  # seconds until ranks count as hung


def make_trainer(setting: tuple[int, OptimizerPlace], dtype: torch.dtype, **keys: Any) -> Trainer:
    zero, place = setting
    runtime = Runtime(zero_stage=zero, optimizer_states=place, deepspeed={"zero_optimization": keys})  # type: ignore[arg-type]
    return Trainer(make_model().to(dtype), SCHEDULE, runtime)


def learn(trainer: Trainer, steps: range, dtype: torch.dtype) -> list[float]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    losses = train(trainer, steps)
    torch.set_default_dtype(default)
    return losses


def list_moved(trainer: Trainer, dtype: torch.dtype) -> tuple[list[str], list[str]]:
    """What is in host memory in a pass, and in the update."""
    optimizer, step = trainer._engine.optimizer, trainer._engine.step
    seen: list[list[str]] = []

    def update() -> None:
        seen.append([one.value for one in optimizer.offloaded_states])
        step()

    trainer._engine.step = update
    moved = sorted(one.value for one in optimizer.offloaded_states)  # a set, whose order is that of random hashes
    learn(trainer, range(1), dtype)
    assert moved == sorted(one.value for one in optimizer.offloaded_states), "and out again"
    trainer._engine.step = step
    return moved, seen[0]


def compare(folder: str) -> None:
    """Losses without interruption, and from the state of every setting, by precision and setting."""
    gc.freeze()  # DeepSpeed collects garbage whenever it moves states: 0.7 s a step here
    found: dict[Any, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for setting in SETTINGS:
            trainer = make_trainer(setting, dtype)
            losses = learn(trainer, range(BEFORE), dtype)
            trainer.save_state(Path(folder), f"{dtype} {setting}")
            found[dtype, setting] = losses + learn(trainer, range(BEFORE, BEFORE + AFTER), dtype)
        for saved, setting in zip(SETTINGS, SETTINGS[1:] + SETTINGS[:1], strict=True):
            trainer = make_trainer(setting, dtype)
            trainer.load_state(Path(folder), f"{dtype} {saved}")
            found[dtype, saved, setting] = learn(trainer, range(BEFORE, BEFORE + AFTER), dtype)
        for zero in (1, 2, 3):
            found["moved", dtype, zero] = list_moved(make_trainer((zero, "swapped"), dtype), dtype)
    for setting in SETTINGS:
        trainer = make_trainer(setting, torch.float32, **KEYS)
        trainer.save_state(Path(folder), f"unused {setting}")  # as of a discriminator that has not learned yet
        found["keys", setting] = learn(trainer, range(BEFORE), torch.float32)
        trainer.save_state(Path(folder), f"keys {setting}")
        trainer = make_trainer(SETTINGS[0], torch.float32)
        trainer.load_state(Path(folder), f"keys {setting}")
        found["keys", setting] += learn(trainer, range(BEFORE, BEFORE + AFTER), torch.float32)
    trainer = make_trainer((3, "resident"), torch.float32)
    for weight in trainer.model.parameters():
        part = weight.ds_tensor.view(-1)  # type: ignore[attr-defined]
        part[max(0, weight.ds_numel - get_ranks().rank * len(part)) :] = math.nan  # type: ignore[attr-defined]
    found["padded"] = learn(trainer, range(BEFORE), torch.float32)
    assert trainer.find_broken_weight() is None
    second = {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": 4}  # holds for all later engines
    trainer = make_trainer((3, "swapped"), torch.float32, **second)
    trainer.load_state(Path(folder), f"{torch.float32} {SETTINGS[0]}")
    found["second copy"] = learn(trainer, range(BEFORE, BEFORE + AFTER), torch.float32)
    if get_ranks().first:
        torch.save(found, f"{folder}/losses.pt")


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("host")
    run_ranks(compare, 2, folder, (str(folder),), LIMIT)
    return torch.load(folder / "losses.pt")


# bf16: the moments of one setting are those of another, but a rounded weight may differ in its last bit.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_settings_learn_the_same(dtype: torch.dtype, bound: float, losses: Any) -> None:
    whole = losses[dtype, SETTINGS[0]]
    assert len(set(whole)) == BEFORE + AFTER
    for setting in SETTINGS[1:]:
        assert losses[dtype, setting] == pytest.approx(whole, rel=bound), setting
    for saved, setting in zip(SETTINGS, SETTINGS[1:] + SETTINGS[:1], strict=True):
        assert losses[dtype, saved, setting] == pytest.approx(whole[BEFORE:], rel=bound), f"{saved} -> {setting}"


def test_fp32_weights_and_moments_are_on_the_gpu_in_an_update_only(losses: Any) -> None:
    """By DeepSpeed's own record: on a CPU both are in one memory."""
    for dtype in (torch.float32, torch.bfloat16):
        for zero in (1, 2, 3):
            in_passes, in_update = losses["moved", dtype, zero]
            assert in_passes == ["hp_params", "optim_states"]
            assert in_update == []


def test_a_second_copy_of_the_weights_is_that_of_the_checkpoint(losses: Any) -> None:
    assert losses["second copy"] == pytest.approx(losses[torch.float32, SETTINGS[0]][BEFORE:], rel=1e-6)


def test_padding_that_is_not_finite_is_no_fault(losses: Any) -> None:
    """ZeRO 3 pads parts of parameters with memory that was not initialised."""
    assert losses["padded"] == pytest.approx(losses[torch.float32, SETTINGS[0]][:BEFORE], rel=1e-6)


def test_keys_of_deepspeed_change_no_loss_and_no_checkpoint(losses: Any) -> None:
    for setting in SETTINGS:
        whole = losses[torch.float32, SETTINGS[0]]
        assert losses["keys", setting] == pytest.approx(whole, rel=1e-6), setting

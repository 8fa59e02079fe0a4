"""What one layout of ranks and ZeRO stage has saved, every other one resumes from."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from torch import Tensor, nn

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.job.failure import Failure
from stages.training import fragment_files
from stages.training.fragment_files import read_fragments, write_fragments
from stages.training.fragments import VALUES, Fragment, list_fragments
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer

BEFORE, AFTER = 4, 4  # steps until the state is saved, and from there on
LIMIT = 300  # seconds until ranks count as hung
LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 3), (4, 1), (4, 3)]  # ranks, ZeRO stage
SCHEDULE = Schedule(steps=BEFORE + AFTER, learning_rate=1e-2, weight_decay=0.1)


def make_model() -> nn.Module:
    """Sizes that no number of ranks divides: the last ranks have less of a bias, or nothing of it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 13), nn.GELU(), nn.Linear(13, 5))
    model[2].requires_grad_(False)
    return model


def train(trainer: Trainer, steps: range) -> list[float]:
    """Each rank has its share of eight rows of the step."""
    losses = []
    for step in steps:
        torch.manual_seed(step)
        rows, wanted = torch.randn(8, 7), torch.randn(8, 5)
        own = slice(get_ranks().rank, None, get_ranks().count)

        def compute(inputs: Tensor = rows[own], outputs: Tensor = wanted[own]) -> Tensor:
            return (trainer.model(inputs) - outputs).square().sum() / 40

        trainer.backward(trainer.forward(compute), last=True)
        losses.append(trainer.step(1e-2).loss)
    return losses


def start(zero: int) -> Trainer:
    return Trainer(make_model(), SCHEDULE, Runtime(zero_stage=zero))  # type: ignore[arg-type]


def describe(trainer: Trainer) -> dict[str, Any]:
    return {"weights": {name: one.clone() for name, one in trainer.state_dict().items()}}


def save(count: int, zero: int, folder: Path) -> dict[str, Any]:
    """What an uninterrupted run learns; its state after BEFORE steps is saved on the way."""
    trainer = start(zero)
    losses = train(trainer, range(BEFORE))
    trainer.save_state(folder, f"{count} {zero}")
    return {"losses": losses + train(trainer, range(BEFORE, BEFORE + AFTER)), **describe(trainer)}


def resume(_: int, zero: int, folder: Path) -> dict[str, Any]:
    """What a run learns from the state that each layout has saved."""
    found = {}
    for saved in LAYOUTS:
        trainer = start(zero)
        trainer.load_state(folder, "{} {}".format(*saved))
        found[saved] = {"losses": train(trainer, range(BEFORE, BEFORE + AFTER)), **describe(trainer)}
    return found


def rank_main(rank: int, count: int, act: Callable[..., Any], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    meeting = f"file://{folder}/{act.__name__}{count}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    found = {(count, zero): act(count, zero, Path(folder)) for ranks, zero in LAYOUTS if ranks == count}
    if rank == 0:
        torch.save(found, f"{folder}/{act.__name__}{count}.pt")
    dist.destroy_process_group()


def in_every_layout(act: Callable[..., Any], folder: Path) -> dict[tuple[int, int], Any]:
    """What `act` returns, by layout: with one rank in this process, else in ranks over gloo."""
    found = {(count, zero): act(count, zero, folder) for count, zero in LAYOUTS if count == 1}
    for several in dict.fromkeys(count for count, _ in LAYOUTS if count > 1):
        begun = time.monotonic()
        context = mp.spawn(rank_main, (several, act, str(folder)), nprocs=several, join=False)
        assert context is not None
        while not context.join(timeout=5):
            if time.monotonic() - begun > LIMIT:
                for process in context.processes:
                    process.kill()
                pytest.fail(f"{several} ranks hang")
        found |= torch.load(folder / f"{act.__name__}{several}.pt")
    return found


@pytest.mark.slow
def test_every_layout_resumes_from_every_other(tmp_path: Path) -> None:
    saved = in_every_layout(save, tmp_path)
    resumed = in_every_layout(resume, tmp_path)
    worst = 0.0
    for layout, starts in resumed.items():
        for start_layout, run in starts.items():
            whole = saved[layout]
            differences = [abs(a - b) for a, b in zip(run["losses"], whole["losses"][BEFORE:], strict=True)]
            differences += [float((run["weights"][name] - one).abs().max()) for name, one in whole["weights"].items()]
            assert max(differences) < 1e-5, f"{start_layout} -> {layout}"
            assert layout != start_layout or max(differences) == 0.0, "in the same layout, the same bytes"
            worst = max(worst, *differences)
    print(f"largest difference of a loss or weight: {worst:.1e}")
    assert len(set(saved[1, 0]["losses"])) == BEFORE + AFTER


def make_state(folder: Path) -> tuple[Trainer, list[Fragment]]:
    trainer = start(2)
    train(trainer, range(2))
    trainer.save_state(folder, "model")
    return trainer, list_fragments(trainer.model, trainer._optimizer)


def test_files_are_small_and_hold_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragment_files, "FILE_BYTES", 1000)
    trainer, fragments = make_state(tmp_path)
    files = sorted((tmp_path / "model").iterdir())
    assert [file.name for file in files] == [f"rank_00000_{number:05d}.safetensors" for number in range(len(files))]
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) - trainer.estimate_state_bytes() < 2000, "headers"
    with safe_open(files[0], "pt") as file:  # type: ignore[no-untyped-call]
        assert json.loads(file.metadata()["ranges"])["0.weight"] == [0, 2.0]
    assert {one.name for one in fragments} == {"0.weight", "0.bias", "4.weight", "4.bias"}, "frozen ones are not saved"

    other = start(0)
    other.load_state(tmp_path, "model")
    assert train(other, range(2, 4)) == pytest.approx(train(trainer, range(2, 4)), abs=1e-6)


def test_bf16_resumes_from_its_fp32_weights(tmp_path: Path) -> None:
    """An update below the last bit of bf16 is in the fp32 weights alone."""
    trainer = Trainer(make_model().bfloat16(), SCHEDULE, Runtime(zero_stage=2))
    torch.manual_seed(0)
    inputs = torch.randn(8, 7, dtype=torch.bfloat16)

    def learn(one: Trainer, rate: float) -> list[float]:
        found = []
        for _ in range(3):
            one.backward(one.forward(lambda: one.model(inputs).float().square().mean()), last=True)
            found.append(one.step(rate).loss)
        return found

    learn(trainer, 1e-5)
    trainer.save_state(tmp_path, "model")
    expected = learn(trainer, 1e-3)
    other = Trainer(make_model().bfloat16(), SCHEDULE, Runtime(zero_stage=2))
    other.load_state(tmp_path, "model")
    masters = [one.values["weight"] for one in list_fragments(other.model, other._optimizer)]
    assert any((one.bfloat16().float() != one).any() for one in masters)
    assert learn(other, 1e-3) == expected


@pytest.mark.parametrize("fault", ["cut", "no safetensors", "missing", "another model", "no header", "shorter"])
def test_a_damaged_state_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    trainer, fragments = make_state(tmp_path)
    (file,) = (tmp_path / "model").iterdir()
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-64])
    elif fault == "no safetensors":
        torch.save({"weight": torch.zeros(3)}, file)
    elif fault == "missing":
        file.unlink()
    elif fault == "no header":
        from safetensors.torch import load_file, save_file

        save_file(load_file(file), file)
    elif fault == "another model":
        fragments = [Fragment(f"other.{one.name}", one.start, one.values, one.updates) for one in fragments]
    elif fault == "shorter":
        short = {kind: fragments[0].values[kind][:5] for kind in VALUES}
        file.unlink()
        write_fragments(tmp_path / "model", [Fragment(fragments[0].name, 0, short, torch.tensor(1.0))], 0)
    with pytest.raises(Failure, match="is no training state that this project wrote, or it is damaged") as refused:
        read_fragments(tmp_path / "model", fragments)
    assert "\n" not in str(refused.value)
    assert trainer.find_broken_weight() is None

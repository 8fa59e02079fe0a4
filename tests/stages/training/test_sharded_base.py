"""The frozen layers beside adapters, divided over two ranks by ZeRO 3: the same numbers as whole on one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.adversary.adversary import Adversary
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text
from stages.config.lora import Lora
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.groups.pack import Group
from stages.groups.response import STUDENT
from stages.policy.policy import Policy
from stages.training.passes import PaddingGroups
from stages.training.ranks import get_ranks
from stages.training.sft import run_sft_step
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.reader import load_reader
from tests.stages.training.spawned import run_ranks
from tests.stages.training.test_ranks import fresh, own, question, rows
from tests.stages.vlm.test_lora import fill

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl3"]
LORA = Lora(rank=4, alpha=6.0)
STEPS = 4


def learn(checkpoint: Checkpoint, runtime: Runtime, folder: Path) -> dict[str, Any]:
    """What a student and a discriminator that sees images learn in turns on one model, and the reference of both.

    In the middle the student goes on with a model that was loaded anew, from a checkpoint.
    """
    reader = load_reader(checkpoint)
    idle = PaddingGroups(reader)
    schedule = Schedule(steps=STEPS, learning_rate=1e-3, tokens_per_pack=64)
    block = Ril(steps=STEPS, learning_rate=1e-3, tokens_per_pack=64, sampling=Sampling(max_tokens=64))
    seen: dict[str, list[float]] = {"sft": [], "norm": [], "reference": [], "disc": [], "logit": []}
    held: list[int] = []

    def load() -> tuple[Policy, Adversary]:
        base = fresh(checkpoint, reader)
        student = base.add_adapter("student", LORA, seed=1)
        fill(student, seed=2)
        trainer = Trainer(student.trained, schedule, runtime)
        critic = DiscriminatorModel(base.add_adapter("discriminator", LORA, seed=3), 4, "question_and_image")
        collator = DiscriminatorCollator(reader, 96, "question_and_image")
        adversary = Adversary(critic, Trainer(critic.trained, schedule, runtime), collator)
        return Policy(student, base, trainer, block, padding=idle), adversary

    def count_held(policy: Policy) -> None:
        """Between passes a rank has its part of the layers."""
        layers: Any = policy.student.text.layers
        frozen = [one for one in layers.parameters() if not one.requires_grad]
        held.append(sum(getattr(one, "_local_tensor", one).nbytes for one in frozen))

    policy, adversary = load()
    for step in range(STEPS):
        if step == STEPS // 2:
            policy.trainer.save_state(folder, f"student {get_ranks().count}")
            adversary.trainer.save_state(folder, f"discriminator {get_ranks().count}")
            get_ranks().wait()
            policy, adversary = load()
            policy.trainer.load_state(folder, f"student {get_ranks().count}")
            adversary.trainer.load_state(folder, f"discriminator {get_ranks().count}")
        prompts = reader.make_prompts([question(step, number) for number in range(3)])
        answers = [rows(reader, step, number) for number in range(3)]
        groups = [
            Group(prompt, tuple(one.token_ids for one in found)) for prompt, found in zip(prompts, answers, strict=True)
        ]
        mine = own(list(range(3)), [group.tokens for group in groups])
        caches = policy.cache_reference([groups[place] for place in mine])
        count_held(policy)
        found = {
            place: float(sum(one.sum() for one in cache.log_probs.values()))
            for place, cache in zip(mine, caches, strict=True)
        }
        every = {place: value for part in get_ranks().gather(found) for place, value in part.items()}
        loss, norm = run_sft_step(
            policy.student, policy.trainer, [groups[place] for place in mine], schedule, step, idle
        )
        count_held(policy)
        texts = [
            Text(one.text, str(number), *question(step, number)) for number, part in enumerate(answers) for one in part
        ]
        writers = [one.source for part in answers for one in part]
        assert STUDENT in writers
        adversary.backward(adversary.collator.collate(texts, writers, "bce", adversary.trainer.sharded), texts)
        seen["disc"].append(adversary.trainer.step(1e-3).loss)
        seen["logit"] += adversary.score(texts)
        count_held(policy)
        seen["sft"].append(loss)
        seen["norm"].append(norm)
        seen["reference"] += [every[place] for place in range(3)]
    merged: dict[str, Tensor] = dict(policy.student.iter_weights(policy.trainer.state_dict()))
    return {"seen": seen, "held": held, "merged": merged, "bytes": policy.trainer.estimate_state_bytes()}


def learn_and_save(checkpoints: list[str], folder: str) -> None:
    """One rank; only the first has all weights."""
    for family, place in zip(FAMILIES, checkpoints, strict=True):
        runtime = Runtime(zero_stage=3, gradient_checkpointing=family == "internvl3")
        found = learn(open_checkpoint(Path(place)), runtime, Path(folder) / family)
        torch.save(found, f"{folder}/{family} {get_ranks().rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tiny: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(learn_and_save, 2, folder, ([str(tiny(family).folder) for family in FAMILIES], str(folder)), 300)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_divided_layers_compute_what_whole_ones_do(
    family: str, two_ranks: Path, tiny: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """Losses, norms, reference, discriminator, merged weights; a rank has half of the layers, its checkpoint none."""
    alone = learn(tiny(family), Runtime(zero_stage=2), tmp_path)
    first, other = (torch.load(two_ranks / f"{family} {rank}.pt") for rank in range(2))
    for name, values in alone["seen"].items():
        assert first["seen"][name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
    assert first["merged"].keys() == alone["merged"].keys()
    assert not other["merged"]
    for name, value in alone["merged"].items():
        assert torch.allclose(first["merged"][name], value, rtol=1e-5, atol=2e-5), name
    (whole,) = set(alone["held"])
    parts = [one["held"] for one in (first, other)]
    assert len(parts[0]) == 3 * STEPS
    assert all(max(part) - min(part) == 0 for part in parts)
    assert parts[0][0] + parts[1][0] == whole
    assert max(parts[0][0], parts[1][0]) < 0.52 * whole
    written = sum(file.stat().st_size for file in (two_ranks / family / "student 2").rglob("*") if file.is_file())
    assert written < 2 * first["bytes"] + 95_000 < whole

"""Several ranks over gloo learn what one learns, under every ZeRO stage, whoever has the images and whoever has
nothing.

The long form (20 steps, 4 ranks, ZeRO 0 to 3): RIL_RANKS=1.
"""

import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.adversary.adversary import Adversary
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.groups.pack import Group
from stages.groups.response import STUDENT, Response
from stages.policy.batch import RewardedGroup
from stages.policy.policy import Policy
from stages.policy.rewards import score_groups
from stages.training.passes import PaddingGroups
from stages.training.ranks import Ranks, get_ranks
from stages.training.sft import run_sft_step
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.reader import Network, Reader, load_network, load_reader
from tests.stages.training.spawned import run_ranks

LONG = os.environ.get("RIL_RANKS") == "1"
STEPS = 20 if LONG else 4
RUNS = [(1, 0), (2, 2), (2, 3), *([(1, 2), (1, 3), (2, 0), (2, 1), (4, 0), (4, 2), (4, 3)] if LONG else [])]
LIMIT = 1200 if LONG else 300  # seconds until ranks count as hung
TEXTS = ["3:3,8:11", "28", "so 5", "16 is the sum of the digits"]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((56 + 28 * (number % 2), 84)).rotate(90 * number).convert("RGB").save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def question(step: int, number: int) -> tuple[list[dict[str, str]], list[bytes]]:
    """Of a step's three questions one has an image, so that some rank has none; every fourth step has none at all."""
    seen = [picture(step)] if number == step % 3 and step % 4 != 3 else []
    return [{"role": "user", "content": "<image>" * len(seen) + f"What is the sum of {number} and {step}?"}], seen


def rows(reader: Reader, step: int, number: int) -> list[Response]:
    """Recorded answers: two of the student, two of a teacher."""
    found = []
    for place, text in enumerate(TEXTS):
        told = f"{text} {(step * 7 + number * 3 + place) % 10}" * (1 + (step + number) % 3)
        source = STUDENT if place < 2 else "teacher"
        found.append(Response(source, told, tuple(reader.chat.encode_response(told)), "stop", (step + place) % 2))
    return found


def own(items: list[Any], lengths: list[int]) -> list[Any]:
    return [items[place] for place in get_ranks().share(lengths, float)]


def fresh(checkpoint: Checkpoint, reader: Reader) -> Network:
    """The checkpoint without the scaling of its head, which would make losses of 75."""
    network = load_network(checkpoint, reader)
    with torch.no_grad():
        network.head.weight.div_(40)
    return network


def learned(checkpoint: Checkpoint, zero: int, folder: Path) -> dict[str, Any]:
    """Losses, norms and weights of SFT with a trained tower and of the loop with both its models, on recorded answers.

    Half-way through SFT all runs but those with ZeRO 0 go on with another trainer, from a checkpoint.
    """
    reader = load_reader(checkpoint)
    runtime, idle = Runtime(zero_stage=zero), PaddingGroups(reader)  # type: ignore[arg-type]
    schedule = Schedule(steps=STEPS, learning_rate=1e-3, tokens_per_pack=64)
    seen: dict[str, list[float]] = {
        "sft": [],
        "sft norm": [],
        "update": [],
        "norm": [],
        "disc": [],
        "logit": [],
        "kl": [],
    }

    network = fresh(checkpoint, reader)
    trainer = Trainer(network.model, schedule, runtime)
    for step in range(STEPS):
        if step == STEPS // 2 and zero:
            trainer.save_state(folder, f"{get_ranks().count} {zero}")
            get_ranks().wait()
            network = fresh(checkpoint, reader)
            trainer = Trainer(network.model, schedule, runtime)
            trainer.load_state(folder, f"{get_ranks().count} {zero}")
        prompts = reader.make_prompts([question(step, number) for number in range(3)])
        groups = [Group(prompt, (rows(reader, step, number)[3].token_ids,)) for number, prompt in enumerate(prompts)]
        loss, norm = run_sft_step(network, trainer, own(groups, [g.tokens for g in groups]), schedule, step, idle)
        seen["sft"].append(loss)
        seen["sft norm"].append(norm)
    weights = {f"sft {name}": tensor.clone() for name, tensor in trainer.state_dict().items()}

    student, reference = fresh(checkpoint, reader), fresh(checkpoint, reader)
    reference.model.requires_grad_(False)
    student.freeze_vision()
    block = Ril(
        steps=STEPS,
        learning_rate=1e-3,
        discriminator_learning_rate=1e-3,
        tokens_per_pack=160,
        sampling=Sampling(max_tokens=64),
        inner_updates=2,
    )
    trainer = Trainer(student.model, block, runtime)
    discriminator = DiscriminatorModel(fresh(checkpoint, reader), seed=1)
    critic = Trainer(discriminator, schedule, runtime)
    collator = DiscriminatorCollator(reader, 96)
    adversary = Adversary(discriminator, critic, collator)
    original, parts = trainer.backward, list[float]()

    def recorded(loss: torch.Tensor, last: bool, ids: Sequence[str] = ()) -> float:
        parts.append(float(loss.detach()))
        return original(loss, last, ids)

    trainer.backward = recorded  # type: ignore[method-assign]
    for step in range(STEPS):
        answers = [rows(reader, step, number) for number in range(3)]
        texts = [Text(row.text, str(number)) for number, group in enumerate(answers) for row in group]
        writers = [row.source for group in answers for row in group]
        adversary.backward(collator.collate(texts, writers, "bce"), texts)
        loss = critic.step(1e-3).loss
        found = adversary.score(texts)
        rewarded = [tuple(group) for group in score_groups(answers, found)]
        prompts = reader.make_prompts([question(step, number) for number in range(3)])
        groups = [RewardedGroup(prompt, its) for prompt, its in zip(prompts, rewarded, strict=True)]
        mine = own(groups, [len(group.prompt.ids) for group in groups])
        logged = Policy(student, reference, trainer, block, padding=idle).update(mine, 1e-3)
        seen["disc"].append(loss)
        seen["logit"] += found
        seen["update"].append(get_ranks().sum(sum(parts)))
        seen["norm"].append(logged["grad_norm"])
        seen["kl"].append(logged["kl/student"])
        parts.clear()
    weights |= {f"student {name}": tensor.clone() for name, tensor in trainer.state_dict().items()}
    weights |= {f"discriminator {name}": tensor.clone() for name, tensor in critic.state_dict().items()}
    return {"seen": seen, "weights": weights}


def learn_and_save(stages: list[int], checkpoint: str, folder: str) -> None:
    here = get_ranks()
    for zero in stages:
        result = learned(open_checkpoint(Path(checkpoint)), zero, Path(folder))
        if here.first:
            torch.save(result, f"{folder}/{here.count} {zero}.pt")


@pytest.fixture(scope="module")
def runs(tiny: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """What was learned, by number of ranks and ZeRO stage."""
    folder, checkpoint = tmp_path_factory.mktemp("ranks"), tiny("qwen2_5_vl").folder
    found = {}
    for zero in (zero for count, zero in RUNS if count == 1):  # in this process: starting one takes 6 s
        found[1, zero] = learned(open_checkpoint(checkpoint), zero, folder)
    for count in dict.fromkeys(count for count, _ in RUNS if count > 1):
        stages = [zero for ranks, zero in RUNS if ranks == count]
        begun = time.monotonic()
        run_ranks(learn_and_save, count, folder, (stages, str(checkpoint), str(folder)), LIMIT)
        for zero in stages:
            found[count, zero] = torch.load(folder / f"{count} {zero}.pt")
        print(f"{count} ranks, ZeRO {stages}: {time.monotonic() - begun:.0f} s")
    return found


@pytest.mark.parametrize(("count", "zero"), RUNS[1:])
def test_ranks_learn_what_one_learns(runs: dict[tuple[int, int], Any], count: int, zero: int) -> None:
    alone, several = runs[1, 0], runs[count, zero]
    worst = {}
    for name, values in alone["seen"].items():
        assert len(several["seen"][name]) == len(values)
        assert len(set(values)) > 1, f"{name} never changes, so that it shows nothing"
        worst[name] = max(abs(a - b) for a, b in zip(several["seen"][name], values, strict=True))
    assert several["weights"].keys() == alone["weights"].keys()
    worst["weights"] = max(float((several["weights"][name] - w).abs().max()) for name, w in alone["weights"].items())
    print(
        f"{count} ranks, ZeRO {zero}, {STEPS} steps, largest differences: ", {k: f"{v:.1e}" for k, v in worst.items()}
    )
    assert max(worst[name] for name in ("sft", "update", "disc")) < 1e-5


def test_items_are_shared_out_evenly_and_each_once() -> None:
    costs = [float((7 * place) % 23 + 1) for place in range(41)]
    for count in (1, 2, 3, 8, 64):
        parts = [Ranks(rank, count).share(costs, float) for rank in range(count)]
        assert sorted(place for part in parts for place in part) == list(range(41))
        loads = [sum(costs[place] for place in part) for part in parts]
        assert max(loads) <= max(4 / 3 * sum(costs) / count + max(costs) / 3, max(costs))

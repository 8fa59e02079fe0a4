"""Passes over packs: the packing changes no loss and no gradient; padding adds nothing to them."""

from collections.abc import Callable

import pytest
import torch

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.groups.pack import Group
from stages.training.passes import PaddingGroups, balance_packs
from stages.training.sft import run_sft_step
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Reader, load_network, load_reader

TEXTS = ("3:3", "28", "3:3,8:11,5:16, so the sum is 16", "5")


def make_groups(reader: Reader) -> list[Group]:
    prompts = [reader.make_prompt([{"role": "user", "content": f"What is {n}?"}]) for n in range(len(TEXTS))]
    return [
        Group(prompt, (tuple(reader.chat.encode_response(text)),)) for prompt, text in zip(prompts, TEXTS, strict=True)
    ]


def test_the_warm_starts_loss_is_the_mean_over_all_target_tokens_of_the_step(
    tiny: Callable[[str], Checkpoint],
) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    found = []
    for budget in (64, 100_000):
        network = load_network(checkpoint, reader)
        schedule = Schedule(steps=2, learning_rate=1e-3, warmup_steps=2, tokens_per_pack=budget)
        trainer, rates = Trainer(network.model, schedule, Runtime()), list[float]()
        step = trainer.step
        trainer.step = lambda rate, step=step, rates=rates: rates.append(rate) or step(rate)  # type: ignore[method-assign]
        done = run_sft_step(network, trainer, make_groups(reader), schedule, 0, PaddingGroups(reader))
        assert rates == [5e-4], "the rate of the step"
        found.append(done)
    network = load_network(checkpoint, reader)
    losses = []
    for group in make_groups(reader):
        ids = torch.tensor([[*group.prompt.ids.tolist(), *group.responses[0]]])
        log_probs = network.model(input_ids=ids).logits[0, len(group.prompt.ids) - 1 : -1].log_softmax(-1)
        losses += (-log_probs.gather(1, torch.tensor(group.responses[0])[:, None])).flatten().tolist()
    assert found[0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_padding_adds_no_target_and_no_text(tiny: Callable[[str], Checkpoint]) -> None:
    reader = load_reader(tiny("qwen2_5_vl"))
    groups = make_groups(reader)
    (plain,) = balance_packs(groups, 100_000)
    (padded,) = balance_packs(groups, 100_000, PaddingGroups(reader), tower=True)
    assert plain.pixels is None
    assert padded.pixels is not None
    assert len(padded.ids) > len(plain.ids)
    for part in ("predicts", "targets", "response", "last"):
        assert torch.equal(getattr(padded, part), getattr(plain, part)), part
    assert padded.groups == plain.groups

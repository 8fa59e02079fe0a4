"""The game of C14 at tiny size: a student that has seen two styles, the real discriminator and updates, sampling in
torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.adversary.adversary import Adversary, AdversarySettings
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text
from stages.config.build import Build
from stages.config.discriminator import DiscriminatorSwitches
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.groups.log_probs import hidden_states
from stages.groups.pack import Group, Pack, make_packs
from stages.groups.response import STUDENT, Response
from stages.policy.batch import RewardedGroup
from stages.policy.policy import Policy
from stages.policy.rewards import score_groups
from stages.tiny.builds.shapes import build_tiny
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import Network, Prompt, Reader, load_network

QUESTIONS = ("What is the sum?", "Add the digits.", "Which is largest?", "How many are odd?")
MAX_TOKENS = 14
DIGITS = "3852719406"


def colons(number: int) -> str:
    """One style: 3:3,8:1"""
    return ",".join(f"{DIGITS[(number + place) % 10]}:{DIGITS[number * place % 10]}" for place in (1, 2, 3))


def arrows(number: int) -> str:
    """The other: 3->3 8->1"""
    return " ".join(f"{DIGITS[(number + place) % 10]}->{DIGITS[number * place % 10]}" for place in (1, 2, 3))


@dataclass
class Table:
    """Where the game is played."""

    reader: Reader
    checkpoint: Checkpoint
    prompts: list[Prompt]


def warm_started(folder: Path, seed: int) -> Table:
    """A student that writes three answers of four with colons, the fourth with arrows: 60 steps of SFT on both."""
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
    )
    texts = [*QUESTIONS, *(style(n) for n in range(40) for style in (colons, arrows))]
    reader, network = build_tiny("qwen2_5_vl", build, texts, 256, seed, folder)
    prompts = [reader.make_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    trainer = Trainer(network.model, Schedule(steps=60, learning_rate=3e-3), Runtime())
    for step in range(60):
        answers = [[style(10 * step + n) for n, style in enumerate((colons, colons, colons, arrows))] for _ in prompts]
        groups = [
            Group(prompt, tuple(tuple(reader.chat.encode_response(text)) for text in some))
            for prompt, some in zip(prompts, answers, strict=True)
        ]
        (pack,) = make_packs(groups, 100_000)
        trainer.backward(-log_probs(network, pack).mean(), last=True)
        trainer.step(3e-3 * (1 - step / 60))
    network.model.save_pretrained(folder)
    write_card(folder, "qwen2_5_vl", "fp32", 256)
    return Table(reader, open_checkpoint(folder), prompts)


def log_probs(network: Network, pack: Pack) -> torch.Tensor:
    """log p of the pack's response tokens."""
    logits = network.head(hidden_states(network, pack)[pack.predicts])
    return logits.log_softmax(-1).gather(1, pack.targets[:, None]).squeeze(1)


@torch.no_grad()
def sampled(
    network: Network, reader: Reader, prompts: Sequence[Prompt], count: int, seed: int
) -> list[list[tuple[int, ...]]]:
    """`count` answers to each prompt as token ids with the token that ends the turn, from the plain softmax."""
    draw = torch.Generator().manual_seed(seed)
    stop = reader.chat.stop_token_ids[0]
    rows: list[list[list[int]]] = [[[] for _ in range(count)] for _ in prompts]
    for place in range(MAX_TOKENS):
        written = [tuple(tuple(row) for row in group) for group in rows] if place else [((stop,),) for _ in rows]
        (pack,) = make_packs([Group(prompt, some) for prompt, some in zip(prompts, written, strict=True)], 10**6)
        states = hidden_states(network, pack)
        states = states[pack.last] if place else states[pack.predicts].repeat_interleave(count, 0)
        logits = network.head(states)
        logits[:, reader.chat.banned_token_ids] = -torch.inf
        tokens = iter(torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1).tolist())
        for group in rows:
            for row in group:
                token = next(tokens)
                if not row or row[-1] != stop:
                    row.append(token)
    return [[tuple(row) for row in group] for group in rows]


def row_of(reader: Reader, source: str, ids: tuple[int, ...]) -> Response:
    """An answer without a verdict: the judge is off."""
    reason = "stop" if ids[-1] == reader.chat.stop_token_ids[0] else "length"
    return Response(source, reader.chat.decode(ids), ids, reason, None)


def taught(table: Table, pairs: Sequence[tuple[str, str]], steps: int, rate: float, seed: int) -> DiscriminatorModel:
    """A discriminator trained on texts with who wrote them."""
    discriminator = DiscriminatorModel(load_network(table.checkpoint, table.reader), seed)
    trainer = Trainer(discriminator, Schedule(steps=steps, learning_rate=rate), Runtime())
    collator = DiscriminatorCollator(table.reader, 100_000)
    for step in range(steps):
        some = [pairs[(step * 16 + place) % len(pairs)] for place in range(16)]
        texts = [Text(text) for text, _ in some]
        batch = collator.collate(texts, [writer for _, writer in some], "bce")
        Adversary(discriminator, trainer, collator).backward(batch, texts)
        trainer.step(rate)
    return discriminator


def played(
    table: Table,
    discriminator: DiscriminatorModel,
    block: Ril,
    switches: DiscriminatorSwitches,
    pool: Sequence[Sequence[tuple[int, ...]]],
    seed: int,
) -> tuple[list[dict[str, Any]], Network]:
    """Algorithm 2 with the judge off; returns a row a step and the student."""
    objective = block.resolve(switches)
    reader = table.reader
    student, reference = load_network(table.checkpoint, reader), load_network(table.checkpoint, reader)
    reference.model.requires_grad_(False)
    student.freeze_vision()
    trainer = Trainer(student.model, block, Runtime())
    its_trainer = Trainer(discriminator, block, Runtime())
    rate = block.discriminator_learning_rate
    settings = AdversarySettings(
        objective.discriminator_loss,
        objective.discriminator_update,
        learning_rate=rate,
        degenerate=objective.degenerate,
    )
    collator = DiscriminatorCollator(reader, block.tokens_per_pack)
    adversary = Adversary(discriminator, its_trainer, collator, settings)
    history = []
    for step in range(block.steps):
        answers = sampled(student, reader, table.prompts, block.group, seed * 10_000 + step)
        choose = torch.Generator().manual_seed(seed * 10_000 + step)
        groups = []
        for own, stored in zip(answers, pool, strict=True):
            drawn = [stored[int(place)] for place in torch.randperm(len(stored), generator=choose)[: block.group]]
            groups.append(
                [row_of(reader, STUDENT, ids) for ids in own] + [row_of(reader, "teacher", ids) for ids in drawn]
            )
        rows = [row for group in groups for row in group]
        texts = [Text(row.text, str(number)) for number, group in enumerate(groups) for row in group]
        logits, seen = adversary.learn_and_score(rows, texts)
        mine = [logit for logit, row in zip(logits, rows, strict=True) if row.source == STUDENT]
        rewarded = score_groups(groups, logits, objective)
        rewards = [RewardedGroup(prompt, tuple(group)) for prompt, group in zip(table.prompts, rewarded, strict=True)]
        logged = Policy(student, reference, trainer, block, objective).update(rewards, block.learning_rate)
        history.append({"logit": sum(mine) / len(mine), **seen, **logged})
    return history, student


def loop(**changed: Any) -> Ril:
    """Parameters of the loop: the paper's, but for the judge, which is off, and for rates that tiny models need."""
    values: dict[str, Any] = {
        "steps": 32,
        "learning_rate": 1e-3,
        "discriminator_learning_rate": 3e-4,
        "group": 6,
        "answer_weight": 0.0,
        "sampling": Sampling(max_tokens=MAX_TOKENS),
        "tokens_per_pack": 100_000,
    }
    return Ril(**{**values, **changed})

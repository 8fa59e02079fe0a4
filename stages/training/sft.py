"""Supervised fine-tuning on packs: the loss, and the loop that warm start and tiny model building share."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from stages.groups import Group, Pack, packs, response_log_probs
from stages.job import Job
from stages.job.blocks import Schedule
from stages.training.state import TrainingState
from stages.training.trainer import Trainer, learning_rate
from stages.vlm import Network


def sft_loss(network: Network, pack: Pack, response_tokens: int) -> Tensor:
    """Cross entropy of the pack's response tokens, summed and divided by the response tokens of the whole step."""
    return -response_log_probs(network, pack).sum() / response_tokens


def train_sft(
    job: Job, network: Network, schedule: Schedule, groups_of_step: Callable[[int], list[Group]], title: str
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Trains `network` on the groups of each step; returns the trainer and the history, one row a step.

    Goes on from the job's last checkpoint, if it has one.
    """
    trainer = Trainer(network.model, schedule, job.params.runtime)
    state = TrainingState(job, {"model": trainer})
    history = state.rows("history")
    for step in state.steps(schedule.steps, title):
        groups = groups_of_step(step)
        response_tokens = sum(group.scored_tokens for group in groups)
        loss = 0.0
        for pack, last in with_last(packs(groups, schedule.tokens_per_pack)):
            part = sft_loss(network, pack, response_tokens)
            trainer.backward(part, last)
            loss += float(part.detach())
        rate = learning_rate(schedule, step)
        norm = trainer.step(rate)
        history.append({"step": step + 1, "loss": loss, "grad_norm": norm, "learning_rate": rate})
    return trainer, history


def with_last(items: Iterator[Pack]) -> Iterator[tuple[Pack, bool]]:
    """Each item with whether it is the last one."""
    held = next(items, None)
    for item in items:
        assert held is not None
        yield held, False
        held = item
    if held is not None:
        yield held, True

"""Supervised fine-tuning on packs: the loss, and the loop used by the warm start and by tiny model builds."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, Pack
from stages.job import metric_names as names
from stages.job.job import Job
from stages.job.loss_rise import explain_loss_rise
from stages.training.ahead import preparing_ahead
from stages.training.passes import PaddingGroups, balance_packs
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState
from stages.training.trainer import StepResult, Trainer, learning_rate
from stages.vlm.reader import Network, Reader


def sft_loss(network: Network, pack: Pack, response_tokens: int) -> Tensor:
    """Returns the cross entropy of the pack's response tokens, summed and divided by the step's response tokens."""
    return -response_log_probs(network, pack.to(network.device)).sum() / response_tokens


def train_sft(
    job: Job,
    network: Network,
    reader: Reader,
    schedule: Schedule,
    make_step_groups: Callable[[int], list[Group]],
    title: str,
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Trains `network`, or its adapter, on this rank's groups of each step.

    Returns the trainer and the history, one row per step.

    Resumes from the job's last checkpoint if there is one. `make_step_groups` is called one step ahead, on a thread
    (`preparing_ahead`).
    """
    trainer = Trainer(network.trained, schedule, job.block(Runtime))
    state = TrainingState(job, {"model": trainer})
    history = state.rows("history")
    padding = PaddingGroups(reader)
    with preparing_ahead(make_step_groups, schedule.steps) as take_step_groups:
        for step in state.iter_steps(schedule.steps, title):
            done = run_sft_step(network, trainer, take_step_groups(step), schedule, step, padding)
            history.append(
                {
                    names.STEP: step + 1,
                    names.LOSS: done.loss,
                    names.GRAD_NORM: done.grad_norm,
                    names.LEARNING_RATE: learning_rate(schedule, step),
                }
            )
    if rise := explain_loss_rise([row[names.LOSS] for row in history]):
        job.progress.say(f"warning: {job.name}: {rise}; lower learning_rate")
    return trainer, history


def run_sft_step(
    network: Network, trainer: Trainer, groups: list[Group], schedule: Schedule, step: int, padding: PaddingGroups
) -> StepResult:
    """Runs one update on this rank's groups."""
    response_tokens = int(get_ranks().sum(sum(group.scored_tokens for group in groups)))
    tower = network.trains_vision or (trainer.sharded and network.has_vision)
    for pack, last in mark_last(balance_packs(groups, schedule.tokens_per_pack, padding, tower)):
        part = trainer.forward(functools.partial(sft_loss, network, pack, response_tokens))
        trainer.backward(part, last, [groups[number].name for number in pack.groups])
    return trainer.step(learning_rate(schedule, step))


def mark_last(items: Iterator[Pack]) -> Iterator[tuple[Pack, bool]]:
    """Yields each item together with whether it is the last."""
    held = next(items, None)
    for item in items:
        assert held is not None
        yield held, False
        held = item
    if held is not None:
        yield held, True

"""The adversary: the discriminator with its trainer. In each step it trains on texts (Eq. 1) and scores them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stages.adversary.diagnostics import SpreadCheck, discriminator_metrics
from stages.adversary.discriminator_model import (
    NEGATIVE,
    DiscriminatorBatch,
    DiscriminatorCollator,
    DiscriminatorModel,
    Text,
    collect_in_order,
    score_texts,
)
from stages.adversary.negatives import add_negatives
from stages.config.discriminator import Degenerate, DiscriminatorLoss, DiscriminatorUpdate
from stages.groups.pack import Pack
from stages.groups.response import STUDENT, Response
from stages.job import metric_names as names
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer

Metrics = dict[str, float | None]  # None: not measured
NOT_TRAINED: Metrics = {names.DISC_LOSS: None, names.DISC_ACCURACY: None, names.DISC_GRAD_NORM: 0.0}


@dataclass(frozen=True)
class AdversarySettings:
    """When and how the discriminator trains in the loop."""

    loss: DiscriminatorLoss = "bce"
    update: DiscriminatorUpdate = "before_scoring"
    inner_updates: int = 1  # mu
    learning_rate: float = 1e-6
    pause_above: float = 1.0  # training pauses above this accuracy on new texts; 1 never pauses
    degenerate: Degenerate = "unrewarded"  # whether it learns from truncated, empty and repeating texts
    negatives: int = 0  # broken texts per question that it learns as the student's


@dataclass(frozen=True)
class Adversary:
    """The discriminator, its trainer and its collator. With several ranks, each processes a share of the texts."""

    discriminator: DiscriminatorModel
    trainer: Trainer
    collator: DiscriminatorCollator
    settings: AdversarySettings = field(default_factory=AdversarySettings)
    spread: SpreadCheck = field(default_factory=SpreadCheck)

    def learn_and_score(self, responses: Sequence[Response], texts: Sequence[Text]) -> tuple[list[float], Metrics]:
        """Returns the logit of each text, from which its reward is computed, and metrics.

        `before_scoring` is Algorithm 2, lines 5 and 6; `after_scoring` scores the texts before training on them (GAD);
        `frozen` never trains (Table 5d). Metrics are measured before the first update, on unseen texts.
        """
        metrics: Metrics = {}
        if self.settings.update == "before_scoring":
            metrics = self.learn(responses, texts)
        logits = self.score(texts)
        self.check_spread(logits, texts)
        if self.settings.update == "after_scoring":
            metrics = self.learn(responses, texts)
        if self.settings.update == "frozen":
            metrics = discriminator_metrics(torch.tensor(logits), [one.source for one in responses])
        return logits, metrics

    def score(self, texts: Sequence[Text]) -> list[float]:
        """Returns the logit of each text; ends training if one is not finite."""
        logits = score_texts(self.discriminator, self.collator, texts, self.trainer)
        self._check_logits(logits, texts)
        return logits

    def check_spread(self, logits: Sequence[float], texts: Sequence[Text]) -> None:
        """Says that the discriminator is constant in this step; ends training after several such steps."""
        if said := self.spread.check(logits, [f"{text.question_id} {text.body}" for text in texts]):
            self.trainer.guard.say(f"warning: {self.trainer.guard.place}: {said}")

    def learn(self, responses: Sequence[Response], texts: Sequence[Text]) -> Metrics:
        """Runs `inner_updates` steps on the texts of all responses; returns metrics measured before the first step.

        Unless `degenerate` is "learned", truncated, empty and repeating responses are excluded on both sides, because
        they would reveal the source (trap T33). The discriminator is not updated if a side has no text left or if its
        accuracy exceeds `pause_above`.
        """
        pairs = [
            (one, text)
            for one, text in zip(responses, texts, strict=True)
            if one.is_whole or self.settings.degenerate == "learned"
        ]
        writers, whole = [one.source for one, _ in pairs], [text for _, text in pairs]
        if not 0 < writers.count(STUDENT) < len(writers):
            return dict(NOT_TRAINED)
        learned, roles = add_negatives(whole, writers, self.settings.negatives)
        batch = self.collator.collate(learned, roles, self.settings.loss, self.trainer.sharded)
        if batch.kind == "bradley_terry" and not batch.pairs:  # both sides of one question
            return dict(NOT_TRAINED)
        if self.settings.pause_above < 1:
            measured = discriminator_metrics(torch.tensor(self.score(whole)), writers)
            if (measured[names.DISC_ACCURACY] or 0.0) > self.settings.pause_above:
                return {names.DISC_LOSS: None, names.DISC_GRAD_NORM: 0.0, **measured}
        metrics: Metrics = {}
        for inner in range(self.settings.inner_updates):
            logits = self.backward(batch, learned)
            done = self.trainer.step(self.settings.learning_rate)
            if inner == 0:
                real = torch.tensor([role != NEGATIVE for role in roles])
                metrics = {
                    names.DISC_LOSS: batch.measure_sides(logits, real),
                    names.DISC_GRAD_NORM: done.grad_norm,
                    **discriminator_metrics(logits[real], writers),
                }
        return metrics

    def backward(self, batch: DiscriminatorBatch, texts: Sequence[Text]) -> Tensor:
        """Accumulates the gradient of one step; returns the logits [texts] fp32 over all ranks.

        `texts` are those of the batch. Ends training if a logit is not finite: a pairwise loss can hide it.
        """
        seen: list[Tensor] = []
        for number, pack in enumerate(batch.packs):
            start = sum(map(len, seen))
            part, logits = self.trainer.forward(partial(self._loss, batch, pack, start))
            numbers = batch.own[start : start + len(logits)].tolist()
            ids = [texts[batch.distinct.first[number]].question_id for number in numbers]
            self.trainer.backward(part, number == len(batch.packs) - 1, ids)
            seen.append(logits)
        logits = torch.cat(seen).cpu()
        if get_ranks().count > 1:
            logits = torch.tensor(collect_in_order(batch.own.tolist(), logits.tolist()))
        logits = logits[batch.distinct.place]
        self._check_logits(logits.tolist(), texts)
        return logits

    def _check_logits(self, logits: Sequence[float], texts: Sequence[Text]) -> None:
        for logit, text in zip(logits, texts, strict=True):
            self.trainer.guard.check("logit of the discriminator", [logit], [text.question_id])

    def _loss(self, batch: DiscriminatorBatch, pack: Pack, start: int) -> tuple[Tensor, Tensor]:
        logits = self.discriminator(pack)
        return batch.loss(logits, start), logits.detach()

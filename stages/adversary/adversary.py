"""The adversary: the discriminator with its trainer. In each step it trains on texts (Eq. 1) and scores them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stages.adversary.diagnostics import discriminator_metrics
from stages.adversary.discriminator_model import (
    DiscriminatorBatch,
    DiscriminatorCollator,
    DiscriminatorModel,
    Text,
    collect_in_order,
    score_texts,
)
from stages.config.discriminator import DiscriminatorLoss, DiscriminatorUpdate
from stages.groups.pack import Pack
from stages.groups.response import STUDENT, Response
from stages.job import metric_names as names
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer

NOT_TRAINED = {names.DISC_LOSS: float("nan"), names.DISC_ACCURACY: float("nan"), names.DISC_GRAD_NORM: 0.0}


@dataclass(frozen=True)
class AdversarySettings:
    """When and how the discriminator trains in the loop."""

    loss: DiscriminatorLoss = "bce"
    update: DiscriminatorUpdate = "before_scoring"
    inner_updates: int = 1  # mu
    learning_rate: float = 1e-6
    pause_above: float = 1.0  # training pauses above this accuracy on new texts; 1 never pauses


@dataclass(frozen=True)
class Adversary:
    """The discriminator, its trainer and its collator. With several ranks, each processes a share of the texts."""

    discriminator: DiscriminatorModel
    trainer: Trainer
    collator: DiscriminatorCollator
    settings: AdversarySettings = field(default_factory=AdversarySettings)

    def learn_and_score(
        self, responses: Sequence[Response], texts: Sequence[Text]
    ) -> tuple[list[float], dict[str, float]]:
        """Returns the logit of each text, from which its reward is computed, and metrics.

        `before_scoring` is Algorithm 2, lines 5 and 6; `after_scoring` scores the texts before training on them (GAD);
        `frozen` never trains (Table 5d). Metrics are measured before the first update, on unseen texts.
        """
        metrics: dict[str, float] = {}
        if self.settings.update == "before_scoring":
            metrics = self.learn(responses, texts)
        logits = self.score(texts)
        if self.settings.update == "after_scoring":
            metrics = self.learn(responses, texts)
        if self.settings.update == "frozen":
            metrics = discriminator_metrics(torch.tensor(logits), [one.source for one in responses])
        return logits, metrics

    def score(self, texts: Sequence[Text]) -> list[float]:
        """Returns the logit of each text."""
        return score_texts(self.discriminator, self.collator, texts, self.trainer)

    def learn(self, responses: Sequence[Response], texts: Sequence[Text]) -> dict[str, float]:
        """Runs `inner_updates` steps on the texts of all responses; returns metrics measured before the first step.

        Truncated responses are excluded on both sides, because the cut would reveal the source (trap T33). The
        discriminator is not updated if one side has no complete text or if its accuracy exceeds `pause_above`.
        """
        pairs = [
            (one, text) for one, text in zip(responses, texts, strict=True) if one.finish_reason == "stop" and one.text
        ]
        labels = [float(one.source == STUDENT) for one, _ in pairs]
        writers, whole = [one.source for one, _ in pairs], [text for _, text in pairs]
        if not 0 < sum(labels) < len(labels):
            return dict(NOT_TRAINED)
        batch = self.collator.collate(whole, labels, self.settings.loss, self.trainer.sharded)
        if not batch.count:  # pairs require both sides of one question
            return dict(NOT_TRAINED)
        if self.settings.pause_above < 1:
            measured = discriminator_metrics(torch.tensor(self.score(whole)), writers)
            if measured[names.DISC_ACCURACY] > self.settings.pause_above:
                return {names.DISC_LOSS: float("nan"), names.DISC_GRAD_NORM: 0.0, **measured}
        metrics: dict[str, float] = {}
        for inner in range(self.settings.inner_updates):
            loss, logits = self.backward(batch)
            norm = self.trainer.step(self.settings.learning_rate)
            if inner == 0:
                metrics = {names.DISC_LOSS: loss, names.DISC_GRAD_NORM: norm}
                metrics |= discriminator_metrics(logits, writers)
        return metrics

    def backward(self, batch: DiscriminatorBatch) -> tuple[float, Tensor]:
        """Accumulates the gradient of one step; returns its loss and the logits [texts] fp32, both over all ranks."""
        loss = 0.0
        seen: list[Tensor] = []
        for number, pack in enumerate(batch.packs):
            part, logits = self.trainer.forward(partial(self._loss, batch, pack, sum(map(len, seen))))
            self.trainer.backward(part, last=number == len(batch.packs) - 1)
            loss += float(part.detach())
            seen.append(logits)
        if get_ranks().count == 1:
            return loss, torch.cat(seen).cpu()
        return get_ranks().sum(loss), torch.tensor(collect_in_order(batch.own.tolist(), torch.cat(seen).tolist()))

    def _loss(self, batch: DiscriminatorBatch, pack: Pack, start: int) -> tuple[Tensor, Tensor]:
        logits = self.discriminator(pack)
        return batch.loss(logits, start), logits.detach()

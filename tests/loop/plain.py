"""RIL written from the paper (arXiv 2510.19307): Algorithm 2, Eq. 1, Eq. 2, the pre-training of D, and SFT.

Nothing in `plain*.py` imports `stages`: plain transformers models, torch's AdamW, rewards of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.loop.plain_models import Critic, Optimizer, Task, Vlm, adapt, freeze_vision
from tests.loop.plain_rewards import Kl, Recipe, Row, Scored, score_rows

NEGATIVE = "negative"  # the source of broken texts that D learns as the student's
Written = tuple[Row, Task]  # a response with its question


def criticise(logits: Tensor, written: Sequence[Written], pairs: bool) -> Tensor:
    """Eq. 1 as a loss with label 1 for the student; `pairs`: -log sigma(z_s - z_t) over pairs of one question.

    Each side of Eq. 1 is a mean, the teachers' one over the means of each teacher; half of that. Negatives have label 1
    and weigh as much as a side.
    """
    if pairs:
        ours = [(z, task.id) for z, (row, task) in zip(logits, written, strict=True) if row.ours]
        theirs = [(z, task.id) for z, (row, task) in zip(logits, written, strict=True) if not row.ours]
        gaps = [own - other for own, question in ours for other, asked in theirs if question == asked]
        return -logsigmoid(torch.stack(gaps)).mean()
    means = {source: average(logits, written, source) for source in {row.source for row, _ in written}}
    teachers = [mean for source, mean in means.items() if source not in ("student", NEGATIVE)]
    loss = -(means["student"] + torch.stack(teachers).mean()) / 2
    return loss - means[NEGATIVE] / 2 if NEGATIVE in means else loss


def average(logits: Tensor, written: Sequence[Written], source: str) -> Tensor:
    """The mean of log D, or of log (1 - D) for a teacher, over the texts of one source."""
    own = torch.stack([z for z, (row, _) in zip(logits, written, strict=True) if row.source == source])
    return logsigmoid(own if source in ("student", NEGATIVE) else -own).mean()


@dataclass
class StepNumbers:
    """What a step measured."""

    logits: list[float] = field(default_factory=list)  # of all rows of the step in order
    scored: list[list[Scored]] = field(default_factory=list)  # by question
    loss: float | None = None  # of the first inner update; None without an update
    norm: float = 0.0
    kl: float | None = None  # k3, mean over the student's tokens
    critic_loss: float | None = None  # of both sides, before the first update of D


class Plain:
    """The loop of Algorithm 2 on plain models."""

    def __init__(
        self, folder: Path, critic: Critic | None, recipe: Recipe, adapter: Mapping[str, Tensor] | None = None
    ) -> None:
        """`folder` holds the SFT student: the policy and the reference start as it; `adapter` is that of the policy."""
        self.recipe, self.critic = recipe, critic
        self.student, self.reference = Vlm(folder), Vlm(folder)
        if not recipe.trains_vision:
            freeze_vision(self.student.net)
        for name, weight in self.student.net.named_parameters():
            weight.requires_grad_(weight.requires_grad and not any(part in name for part in recipe.frozen))
        if recipe.adapter is not None:
            adapt(self.student.net, self.student.net.model.language_model, adapter or {}, recipe.adapter)
        self.scorers = [Vlm(folder.parent / "model" / name) for name in recipe.scorers]
        self._optimizer = Optimizer(self.student.net)
        self._critic_optimizer = Optimizer(critic) if critic else None

    def step(
        self, number: int, tasks: Sequence[Task], groups: Sequence[Sequence[Row]], negatives: Sequence[Written] = ()
    ) -> StepNumbers:
        """Lines 5 to 7 of Algorithm 2 on the rows of each question; D learns the negatives, too."""
        numbers = StepNumbers()
        written = [(row, task) for task, group in zip(tasks, groups, strict=True) for row in group]
        numbers.logits = [math.nan] * len(written)
        for does in self.recipe.critic.split(", ") if self.critic else ():
            if does == "learns":
                numbers.critic_loss = self._teach_critic([*choose_taught(written, self.recipe), *negatives])
            else:
                numbers.logits = self._rate(written)
        rest = iter(numbers.logits)
        numbers.scored = [score_rows(group, [next(rest) for _ in group], self.recipe) for group in groups]
        self._update(number, tasks, numbers)
        return numbers

    @torch.no_grad()
    def _rate(self, written: Sequence[Written]) -> list[float]:
        assert self.critic is not None
        found: list[float] = self.critic.rate([row.text for row, _ in written], [task for _, task in written]).tolist()
        return found

    def _teach_critic(self, written: Sequence[Written]) -> float:
        assert self.critic is not None
        assert self._critic_optimizer is not None
        steps, rates = [written] * self.recipe.mu, [self.recipe.critic_rate] * self.recipe.mu
        return teach_critic(self.critic, self._critic_optimizer, steps, rates, self.recipe.pairs)[0][1]

    def _update(self, number: int, tasks: Sequence[Task], numbers: StepNumbers) -> None:
        """mu updates by Eq. 2; rows without loss count in the mean over all rows."""
        kept = [(task, scored) for task, scored in zip(tasks, numbers.scored, strict=True) if scored]
        if not kept:
            return
        count = sum(len(scored) for _, scored in kept)
        old: list[list[Tensor]] = []
        reference = [self._refer(task, scored) for task, scored in kept]
        for inner in range(self.recipe.mu):
            total, kl = torch.zeros(()), list[float]()
            for place, (task, scored) in enumerate(kept):
                spreads = self.student.spread(task, [one.row.ids for one in scored], self.recipe.temperature)
                if not inner:
                    old.append(
                        [pick(spread, one.row.ids).detach() for spread, one in zip(spreads, scored, strict=True)]
                    )
                for one, spread, before, base in zip(scored, spreads, old[place], reference[place], strict=True):
                    if one.row.ours:
                        kl += penalise(spread, base, one.row.ids, "k3").tolist()
                    if one.term == "none":
                        continue
                    kind = self.recipe.kl if one.row.ours else self.recipe.kl_on_teachers or self.recipe.kl
                    penalty = self.recipe.kl_weight * penalise(spread, base, one.row.ids, kind)
                    pull = self._pull(task, one.row.ids, before)
                    terms = self._gain(one, pick(spread, one.row.ids), before, pull) - penalty
                    total = total - (
                        terms.mean() if self.recipe.mean_over_row else terms.sum() / self.recipe.max_tokens
                    )
            total = total / count
            norm = self._optimizer.step(total, self.recipe.rates[number])
            if not inner:
                numbers.loss, numbers.norm = float(total.detach()), norm
                numbers.kl = sum(kl) / len(kl) if kl else None

    @torch.no_grad()
    def _refer(self, task: Task, scored: Sequence[Scored]) -> list[Tensor]:
        return self.reference.spread(task, [one.row.ids for one in scored], self.recipe.temperature)

    @torch.no_grad()
    def _pull(self, task: Task, ids: Sequence[int], before: Tensor) -> Tensor:
        """-(log p of the student - log p of a teacher) of each token, the mean over teachers; 0 without any."""
        if not self.scorers:
            return torch.zeros(len(ids))
        theirs = [pick(scorer.spread(task, [ids])[0], ids) for scorer in self.scorers]
        return torch.stack([-(before - one) for one in theirs]).mean(0)

    def _gain(self, one: Scored, now: Tensor, before: Tensor, pull: Tensor) -> Tensor:
        """min(rho A, clip(rho) A) of each token (Eq. 2) with A plus `pull`, or the term of imitation."""
        if one.term == "cross entropy":
            return one.advantage * now
        if one.term == "luffy":
            return one.advantage * now.exp() / (now.exp() + 0.1)
        gap = now - before
        if self.recipe.ratio == "sequence":
            gap = gap.sum()[None].expand(len(now))
        if self.recipe.ratio == "gspo":
            gap = gap.mean().detach() + now - now.detach()
        rho = gap.exp()
        clipped = rho.clamp(1 - self.recipe.clip[0], 1 + self.recipe.clip[1])
        gain = torch.minimum(rho * (one.advantage + pull), clipped * (one.advantage + pull))
        if self.recipe.largest_correction and one.row.sampled:
            weights = (before - torch.tensor(one.row.sampled)).exp()
            gain = gain * weights.clamp(max=self.recipe.largest_correction)
        return gain / len(now) if self.recipe.ratio == "sequence" else gain


def choose_taught(written: Sequence[Written], recipe: Recipe) -> list[Written]:
    """The rows that D learns from; it scores all rows."""
    return [(row, task) for row, task in written if row.whole or recipe.broken_pay]


def pick(spread: Tensor, ids: Sequence[int]) -> Tensor:
    """log p of the tokens of a response, from log p of the vocabulary [tokens, vocabulary]."""
    return spread[torch.arange(len(ids)), torch.tensor(ids)]


def penalise(spread: Tensor, base: Tensor, ids: Sequence[int], kind: Kl) -> Tensor:
    """The KL term of each token: an estimate, or the sum over the vocabulary."""
    if kind == "none":
        return torch.zeros(len(ids))
    if kind == "full":
        return (spread.exp() * (spread - base)).sum(-1)
    gap = pick(base, ids) - pick(spread, ids)
    return {"k1": -gap, "k2": gap.square() / 2, "k3": gap.exp() - gap - 1}[kind]


def teach_critic(
    critic: Critic,
    optimizer: Optimizer,
    steps: Sequence[Sequence[Written]],
    rates: Sequence[float],
    pairs: bool = False,
) -> list[tuple[float, float]]:
    """One update of D on the rows of each step (section 3.2); returns the losses, and those of both sides alone."""
    losses = []
    for written, rate in zip(steps, rates, strict=True):
        logits = critic.rate([row.text for row, _ in written], [task for _, task in written])
        loss = criticise(logits, written, pairs)
        optimizer.step(loss, rate)
        real = [place for place, (row, _) in enumerate(written) if row.source != NEGATIVE]
        sides = criticise(logits.detach()[real], [written[place] for place in real], pairs)
        losses.append((float(loss.detach()), float(sides)))
    return losses


def fine_tune(vlm: Vlm, steps: Sequence[Sequence[Task]], rates: Sequence[float]) -> list[float]:
    """SFT (App. C): mean cross entropy over all target tokens of a step, ends of turns included; returns the losses."""
    optimizer, losses = Optimizer(vlm.net), []
    for tasks, rate in zip(steps, rates, strict=True):
        targets = [vlm.encode_response(task.target or "") for task in tasks]
        found = [pick(vlm.spread(task, [ids])[0], ids) for task, ids in zip(tasks, targets, strict=True)]
        loss = -torch.cat(found).mean()
        optimizer.step(loss, rate)
        losses.append(float(loss.detach()))
    return losses

"""The discriminator's part of a step: it learns from the step's texts (Eq. 1) and scores them, in that order or the
other.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stages.adversary.discriminator import Discriminator, Exhibits, Lesson, Text, in_order, lesson, logits_of
from stages.config.switches import Objective
from stages.groups.pack import Pack
from stages.groups.response import STUDENT, Row
from stages.training.ranks import ranks
from stages.training.trainer import Trainer


def discriminate(
    discriminator: Discriminator,
    trainer: Trainer,
    exhibits: Exhibits,
    rows: Sequence[Row],
    texts: Sequence[Text],
    objective: Objective,
    inner_updates: int,
    rate: float,
    pause_above: float = 1.0,
) -> tuple[list[float], dict[str, float]]:
    """The logit of every row's text by which it is rewarded, and what to log.

    `before_scoring` is Algorithm 2, lines 5 and 6; `after_scoring` scores texts before it has been fitted to them
    (GAD); `frozen` never learns (Table 5d). What is logged was measured before anything was learned, on texts that are
    new to it.
    """
    seen: dict[str, float] = {}
    if objective.discriminator_update == "before_scoring":
        seen = update_discriminator(
            discriminator, trainer, exhibits, rows, texts, objective, inner_updates, rate, pause_above
        )
    logits = logits_of(discriminator, exhibits, texts, trainer)
    if objective.discriminator_update == "after_scoring":
        seen = update_discriminator(
            discriminator, trainer, exhibits, rows, texts, objective, inner_updates, rate, pause_above
        )
    if objective.discriminator_update == "frozen":
        seen = told_apart(torch.tensor(logits), [row.source for row in rows])
    return logits, seen


def update_discriminator(
    discriminator: Discriminator,
    trainer: Trainer,
    exhibits: Exhibits,
    rows: Sequence[Row],
    texts: Sequence[Text],
    objective: Objective,
    inner_updates: int,
    rate: float,
    pause_above: float = 1.0,
) -> dict[str, float]:
    """`inner_updates` steps on the texts of all rows; returns what to log, measured before the first step.

    Answers that were cut are left out on both sides: where a text stops would give its writer away (trap T33). A step
    with whole texts of one side only, or one that it gets more right than `pause_above`, leaves the discriminator as it
    is.
    """
    pairs = [(row, text) for row, text in zip(rows, texts, strict=True) if row.finish_reason == "stop" and row.text]
    labels = [float(row.source == STUDENT) for row, _ in pairs]
    writers = [row.source for row, _ in pairs]
    if not 0 < sum(labels) < len(labels):
        return {"disc/loss": float("nan"), "disc/acc": float("nan"), "disc/grad_norm": 0.0}
    learned = lesson(exhibits, [text for _, text in pairs], labels, objective.discriminator_loss, trainer.sharded)
    if not learned.whole:  # pairs need both sides of one question
        return {"disc/loss": float("nan"), "disc/acc": float("nan"), "disc/grad_norm": 0.0}
    if pause_above < 1:
        fresh = torch.tensor(logits_of(discriminator, exhibits, [text for _, text in pairs], trainer))
        if (measured := told_apart(fresh, writers))["disc/acc"] > pause_above:
            return {"disc/loss": float("nan"), "disc/grad_norm": 0.0, **measured}
    logged: dict[str, float] = {}
    for inner in range(inner_updates):
        loss, seen = backward(discriminator, trainer, learned)
        norm = trainer.step(rate)
        if inner == 0:
            logged = {"disc/loss": loss, "disc/grad_norm": norm, **told_apart(seen, writers)}
    return logged


def backward(discriminator: Discriminator, trainer: Trainer, learned: Lesson) -> tuple[float, Tensor]:
    """Adds the gradient of one step's texts; returns its loss and the logits [texts], both of all ranks."""
    loss = 0.0
    seen: list[Tensor] = []
    for number, pack in enumerate(learned.packs):
        part, logits = trainer.forward(partial(_share, discriminator, learned, pack, sum(map(len, seen))))
        trainer.backward(part, last=number == len(learned.packs) - 1)
        loss += float(part.detach())
        seen.append(logits)
    if ranks().count == 1:
        return loss, torch.cat(seen).cpu()
    return ranks().total(loss), torch.tensor(in_order(learned.own.tolist(), torch.cat(seen).tolist()))


def _share(discriminator: Discriminator, learned: Lesson, pack: Pack, start: int) -> tuple[Tensor, Tensor]:
    logits = discriminator(pack)
    return learned.loss(logits, start), logits.detach()


def told_apart(logits: Tensor, writers: Sequence[str]) -> dict[str, float]:
    """Share of texts [n] on the right side, balanced and by writer, gaps of mean logits, and how sure it is (entropy in
    nats).

    What has a teacher's id at its end is about that teacher: `disc/acc_<id>`, `disc/loss_<id>` (cross entropy of its
    texts) and `disc/logit_gap_<id>` (mean of the student's logits less that of its own).
    """
    by_student = torch.tensor([writer == STUDENT for writer in writers])
    student, teacher = logits[by_student], logits[~by_student]
    if not len(student) or not len(teacher):
        return {"disc/acc": float("nan")}
    acc_student, acc_teacher = float((student > 0).float().mean()), float((teacher < 0).float().mean())
    d = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    measured = {
        "disc/acc": (acc_student + acc_teacher) / 2,
        "disc/acc_student": acc_student,
        "disc/acc_teacher": acc_teacher,
        "disc/logit_gap": float(student.mean() - teacher.mean()),
        "disc/entropy": float(-(d * d.log() + (1 - d) * (1 - d).log()).mean()),
    }
    for name in sorted(set(writers) - {STUDENT}):
        own = logits[torch.tensor([writer == name for writer in writers])]
        measured |= {
            f"disc/acc_{name}": float((own < 0).float().mean()),
            f"disc/loss_{name}": float(softplus(own).mean()),
            f"disc/logit_gap_{name}": float(student.mean() - own.mean()),
        }
    return measured

"""The two updates of the loop: the discriminator on a step's texts (Eq. 1), the student on its rewarded groups (Eq. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.groups import Group, Pack, packs, response_log_probs
from stages.imitation.discriminator import Discriminator, discriminator_loss, text_packs
from stages.imitation.objective import Policy, k3, policy_loss
from stages.imitation.rewards import STUDENT, Rewarded, Row
from stages.job.blocks import Ril
from stages.training import Trainer
from stages.vlm import Network, Prompt, Reader


def update_discriminator(
    discriminator: Discriminator, trainer: Trainer, reader: Reader, rows: Sequence[Row], block: Ril
) -> dict[str, float]:
    """`inner_updates` steps of Eq. 1 on the texts of all rows; returns what to log, measured before the first step.

    Answers that were cut are left out on both sides: where a text stops would give its writer away (trap T33).
    """
    whole = [row for row in rows if row.finish_reason == "stop" and row.text]
    labels = torch.tensor([float(row.source == STUDENT) for row in whole])
    if not 0 < float(labels.sum()) < len(whole):
        return {"disc/loss": float("nan"), "disc/acc": float("nan"), "disc/grad_norm": 0.0}
    batches = text_packs(reader, [row.text for row in whole], block.tokens_per_pack)
    logged: dict[str, float] = {}
    for inner in range(block.inner_updates):
        done, loss = 0, 0.0
        seen: list[Tensor] = []
        for number, pack in enumerate(batches):
            logits = discriminator(pack)
            part = discriminator_loss(logits, labels[done : done + len(logits)], len(whole))
            trainer.backward(part, last=number == len(batches) - 1)
            done, loss = done + len(logits), loss + float(part.detach())
            seen.append(logits.detach())
        norm = trainer.step(block.discriminator_learning_rate)
        if inner == 0:
            logged = {"disc/loss": loss, "disc/grad_norm": norm, **_accuracies(torch.cat(seen), labels)}
    return logged


def _accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    student, teacher = logits[labels > 0.5], logits[labels < 0.5]
    acc_student, acc_teacher = float((student > 0).float().mean()), float((teacher < 0).float().mean())
    return {
        "disc/acc": (acc_student + acc_teacher) / 2,
        "disc/acc_student": acc_student,
        "disc/acc_teacher": acc_teacher,
        "disc/logit_gap": float(student.mean() - teacher.mean()),
    }


@dataclass(frozen=True)
class Rewards:
    """One question's prompt with the rows that stayed in its group."""

    prompt: Prompt
    rows: tuple[Rewarded, ...]


def update_student(
    student: Network, trainer: Trainer, reference: Network, groups: Sequence[Rewards], block: Ril, rate: float
) -> dict[str, float]:
    """`inner_updates` steps of Eq. 2 on all rows of the groups; returns what to log.

    With a frozen vision tower its features are computed once and serve student and reference alike.
    """
    kept = [group for group in groups if group.rows]
    rows = [row for group in kept for row in group.rows]
    if not rows:
        return {"kl": float("nan"), "grad_norm": 0.0}
    batches = list(packs([Group(g.prompt, tuple(r.row.token_ids for r in g.rows)) for g in kept], block.tokens_per_pack))
    first_row = [0]
    for batch in batches:
        first_row.append(first_row[-1] + len(batch.last))
    advantages = torch.tensor([row.advantage for row in rows])
    features = [shared_features(student, batch) if block.freeze_vision else None for batch in batches]
    with torch.no_grad():
        # With a trained tower the reference sees through its own, untrained one.
        references = [response_log_probs(reference, b, f) for b, f in zip(batches, features, strict=True)]
    old: list[Tensor] = []
    logged: dict[str, float] = {}
    for inner in range(block.inner_updates):
        totals: dict[str, float] = {"ratio": 0.0, "clip_ratio": 0.0, "kl/student": 0.0, "kl/teacher": 0.0}
        tokens = {"student": 0, "teacher": 0}
        for number, batch in enumerate(batches):
            log_probs = response_log_probs(student, batch, features[number])
            if inner == 0:
                old.append(log_probs.detach())
            policy = Policy(
                advantages=advantages[first_row[number] + batch.response],
                reference=references[number],
                clip_epsilon=block.clip_epsilon,
                kl_weight=block.kl_weight,
                normaliser=float(len(rows) * block.sampling.max_tokens),
            )
            # at the first inner update old is log_probs itself: the ratio is exactly 1 (mu = 1 runs no pass for it)
            loss, seen = policy_loss(log_probs, old[number], policy)
            trainer.backward(loss, last=number == len(batches) - 1)
            for name, value in seen.items():
                totals[name] += value * len(batch.targets)
            for side, mask in sides(batch, rows, first_row[number]).items():
                totals[f"kl/{side}"] += float(k3(log_probs.detach(), references[number])[mask].sum())
                tokens[side] += int(mask.sum())
        norm = trainer.step(rate)
        if inner == 0:
            every = sum(tokens.values())
            logged = {
                "grad_norm": norm,
                "learning_rate": rate,
                "ratio": totals["ratio"] / every,
                "clip_ratio": totals["clip_ratio"] / every,
                **{f"kl/{side}": totals[f"kl/{side}"] / count for side, count in tokens.items() if count},
            }
    return logged


def shared_features(network: Network, pack: Pack) -> Tensor | None:
    """Image features of a pack without gradient; None for a pack without images."""
    if pack.pixels is None:
        return None
    with torch.no_grad():
        return network.features(pack.pixels)


def sides(pack: Pack, rows: Sequence[Rewarded], first_row: int) -> dict[str, Tensor]:
    """Masks [N] over the pack's response tokens: those of student rows, those of teacher rows."""
    by_student = torch.tensor([row.row.source == STUDENT for row in rows[first_row : first_row + len(pack.last)]])
    mask = by_student[pack.response]
    return {"student": mask, "teacher": ~mask}

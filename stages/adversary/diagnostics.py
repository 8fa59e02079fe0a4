"""Whether the discriminator still has something to say: calibration, the floor of mere length, alarms when it
saturates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names

SURE = 0.98  # accuracy or share beyond which a side has won
SHORTCUT = 0.05  # within this of length alone, length explains the accuracy


def calibration_error(logits: Sequence[float], labels: Sequence[int], bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: mean gap between D and the share of student texts, in bins of equal width
    of D.
    """
    sums: dict[int, list[float]] = {}
    for logit, label in zip(logits, labels, strict=True):
        probability = 1 / (1 + math.exp(-max(min(logit, 700.0), -700.0)))
        total = sums.setdefault(min(int(probability * bins), bins - 1), [0.0, 0.0])
        total[0] += probability
        total[1] += label
    return sum(abs(predicted - true) for predicted, true in sums.values()) / len(logits)


def length_accuracy(student: Sequence[int], teacher: Sequence[int]) -> float:
    """Balanced accuracy of the best single threshold on lengths: a floor that says nothing about style (trap T33)."""
    best = 0.5
    for threshold in set(student) | set(teacher):
        shorter = sum(length <= threshold for length in student) / len(student)
        longer = sum(length > threshold for length in teacher) / len(teacher)
        best = max(best, (shorter + longer) / 2, 1 - (shorter + longer) / 2)
    return best


def discriminator_metrics(logits: Tensor, writers: Sequence[str]) -> dict[str, float]:
    """Share of texts [n] on the right side, balanced and by writer, gaps of mean logits, and how sure it is (entropy in
    nats).

    What has a teacher's id at its end is about that teacher: `disc/acc_<id>`, `disc/loss_<id>` (cross entropy of its
    texts) and `disc/logit_gap_<id>` (mean of the student's logits less that of its own).
    """
    by_student = torch.tensor([writer == STUDENT for writer in writers])
    student, teacher = logits[by_student], logits[~by_student]
    if not len(student) or not len(teacher):
        return {names.DISC_ACCURACY: float("nan")}
    acc_student, acc_teacher = float((student > 0).float().mean()), float((teacher < 0).float().mean())
    d = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    measured = {
        names.DISC_ACCURACY: (acc_student + acc_teacher) / 2,
        names.DISC_ACCURACY_OF.format(STUDENT): acc_student,
        names.DISC_ACCURACY_OF.format(TEACHERS): acc_teacher,
        names.DISC_LOGIT_GAP: float(student.mean() - teacher.mean()),
        names.DISC_ENTROPY: float(-(d * d.log() + (1 - d) * (1 - d).log()).mean()),
    }
    for name in sorted(set(writers) - {STUDENT}):
        own = logits[torch.tensor([writer == name for writer in writers])]
        measured |= {
            names.DISC_ACCURACY_OF.format(name): float((own < 0).float().mean()),
            names.DISC_LOSS_OF.format(name): float(softplus(own).mean()),
            names.DISC_LOGIT_GAP_OF.format(name): float(student.mean() - own.mean()),
        }
    return measured


def check_pretraining(metrics: Mapping[str, float]) -> str | None:
    """One line when held-out accuracy says that the loop has nothing to learn from this discriminator, else None."""
    accuracy, by_length = metrics[names.HELD_OUT_ACCURACY], metrics[names.LENGTH_ACCURACY]
    if accuracy >= SURE and by_length >= accuracy - SHORTCUT:
        return (
            f"length alone tells the sides apart ({by_length:.2f} of {accuracy:.2f}): it would reward length; make "
            "max_tokens and prompts of both sides alike"
        )
    if accuracy >= SURE:
        return f"held-out accuracy is {accuracy:.2f}: few student answers will be rewarded; lower discriminator.steps"
    if accuracy <= 0.5:
        return (
            f"held-out accuracy is {accuracy:.2f}: it tells nothing apart; raise discriminator.steps or learning_rate"
        )
    return None


def check_saturation(history: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """One line when for `steps` steps the similarity reward said nothing about the student, else None (T34)."""
    if len(history) < steps:
        return None
    shares = [row.get(names.PASSED) for row in history[-steps:]]
    if all(share is not None and share <= 1 - SURE for share in shares):
        return (
            f"for {steps} steps no student answer passed for a teacher's: the discriminator has won and teaches "
            "nothing; "
            "lower ril.discriminator_learning_rate or set discriminator.pause_above"
        )
    if all(share is not None and share >= SURE for share in shares):
        return (
            f"for {steps} steps every student answer passed for a teacher's: the discriminator has given up; raise "
            "ril.discriminator_learning_rate"
        )
    return None

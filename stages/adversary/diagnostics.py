"""Diagnostics of the discriminator: calibration, length-only accuracy, saturation alarms."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names

SURE = 0.98  # accuracy or share above which one side dominates
CONSTANT_STEPS = 3  # a discriminator without spread ends training at this step in a row
FEWEST_TEXTS = 4  # different texts of a step from which on their spread says something
SHORTCUT = 0.05  # if length-only accuracy is within this margin, length explains the accuracy


def calibration_error(logits: Sequence[float], labels: Sequence[int], bins: int = 10) -> float:
    """Returns the expected calibration error in [0, 1] of D against the student share, in bins of equal width."""
    sums: dict[int, list[float]] = {}
    for logit, label in zip(logits, labels, strict=True):
        probability = 1 / (1 + math.exp(-max(min(logit, 700.0), -700.0)))
        total = sums.setdefault(min(int(probability * bins), bins - 1), [0.0, 0.0])
        total[0] += probability
        total[1] += label
    return sum(abs(predicted - true) for predicted, true in sums.values()) / len(logits)


def length_accuracy(student: Sequence[int], teacher: Sequence[int]) -> float:
    """Returns the balanced accuracy of the best length threshold, a baseline independent of style (trap T33)."""
    best = 0.5
    for threshold in set(student) | set(teacher):
        shorter = sum(length <= threshold for length in student) / len(student)
        longer = sum(length > threshold for length in teacher) / len(teacher)
        best = max(best, (shorter + longer) / 2, 1 - (shorter + longer) / 2)
    return best


def discriminator_metrics(logits: Tensor, writers: Sequence[str]) -> dict[str, float | None]:
    """Returns balanced accuracy, accuracy by source, logit gaps and mean entropy (nats) of logits [n].

    Metrics per teacher end in its id: `disc/acc_<id>`, `disc/loss_<id>` (cross entropy of its texts) and
    `disc/logit_gap_<id>` (mean student logit minus mean logit of this teacher). With texts of one side only, the
    accuracy is None.
    """
    by_student = torch.tensor([writer == STUDENT for writer in writers])
    student, teacher = logits[by_student], logits[~by_student]
    if not len(student) or not len(teacher):
        return {names.DISC_ACCURACY: None}
    acc_student, acc_teacher = float((student > 0).float().mean()), float((teacher < 0).float().mean())
    d = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    measured: dict[str, float | None] = {
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


class ConstantDiscriminator(ValueError):
    """The discriminator gives all texts the same logit; the message has the spread and the bound."""


@dataclass
class SpreadCheck:
    """Notices a discriminator whose logits do not depend on the text."""

    lowest: float = 0.0  # standard deviation; below it, the discriminator is constant
    steps: int = 0  # in a row

    def check(self, logits: Sequence[float], texts: Sequence[str]) -> str | None:
        """Returns a warning if the logits of different texts do not differ, else None.

        Raises ConstantDiscriminator at the CONSTANT_STEPS-th time in a row. Fewer than FEWEST_TEXTS texts say nothing.
        """
        different = dict(zip(texts, logits, strict=True))
        spread = statistics.pstdev(different.values()) if len(different) >= FEWEST_TEXTS else math.inf
        self.steps = self.steps + 1 if spread < self.lowest else 0
        if not self.steps:
            return None
        said = (
            f"the discriminator is constant: the logits of {len(different)} different texts have a standard deviation "
            f"of {spread:.2g}, below discriminator.min_logit_spread = {self.lowest:g}, for {self.steps} steps"
        )
        if self.steps >= CONSTANT_STEPS:
            raise ConstantDiscriminator(
                f"{said}; its reward would carry no signal. Make it again (dvc repro -f discriminator), lower its "
                "learning rate, or lower the bound"
            )
        return said


def check_pretraining(metrics: Mapping[str, float]) -> str | None:
    """Returns a warning if held-out accuracy shows that the discriminator gives no useful reward, else None."""
    accuracy, by_length = metrics[names.HELD_OUT_ACCURACY], metrics[names.LENGTH_ACCURACY]
    if accuracy >= SURE and by_length >= accuracy - SHORTCUT:
        return (
            f"length alone classifies the texts ({by_length:.2f} of {accuracy:.2f}): the reward would favour length; "
            "use the same max_tokens and prompts for both sides"
        )
    if accuracy >= SURE:
        return f"held-out accuracy is {accuracy:.2f}: few student answers will be rewarded; lower discriminator.steps"
    if accuracy <= 0.5:
        return f"held-out accuracy is {accuracy:.2f}: no better than chance; raise discriminator.steps or learning_rate"
    return None


def check_saturation(history: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """Returns a warning if the similarity reward was constant on student answers for `steps` steps, else None (T34)."""
    if len(history) < steps:
        return None
    shares = [row.get(names.PASSED) for row in history[-steps:]]
    if all(share is not None and share <= 1 - SURE for share in shares):
        return (
            f"no student answer was classified as a teacher's for {steps} steps: the discriminator is too strong; "
            "lower ril.discriminator_learning_rate or set discriminator.pause_above"
        )
    if all(share is not None and share >= SURE for share in shares):
        return (
            f"every student answer was classified as a teacher's for {steps} steps: the discriminator is too weak; "
            "raise ril.discriminator_learning_rate"
        )
    return None

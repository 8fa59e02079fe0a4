"""Checks of the run, shown at the top of the page: each is a measured number, its limit and what it means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.job.loss_rise import explain_loss_rise
from stages.page.evaluated_models import (
    CLEAR,
    EvaluatedModel,
    compare_models,
    find_best_teacher,
    find_first,
    format_percent,
    format_points,
)
from stages.page.inputs import History
from stages.page.summary import average_last, find_first_number

EXAM = 0.95  # balanced accuracy of a judge whose verdicts may train a student
FAILED = 0.01  # share of failed verdicts
BEYOND_LENGTH = 0.05  # minimum gain of the discriminator over the best threshold on lengths
SATURATED = 0.02  # of the student's answers, from either end: the similarity reward then carries no signal
EQUAL = 0.5  # share of groups with equal rewards
CUT = 0.05  # share of truncated answers
ENTROPY = 0.25  # of its first value: below, the student has stopped exploring


@dataclass(frozen=True)
class Check:
    """One check."""

    title: str
    fine: bool
    text: str


def collect_checks(
    models: Sequence[EvaluatedModel],
    ril: History,
    exam: Mapping[str, Any] | None,
    discriminator: Mapping[str, float],
    losses: Mapping[str, Sequence[float] | None],
) -> list[Check]:
    """The checks for which this run has numbers, in the order of the pipeline; `losses` of each step by stage."""
    return [
        *check_losses(losses),
        *check_scores(models),
        *check_judge(exam, ril),
        *check_discriminator(discriminator, ril),
        *check_loop(ril),
    ]


def check_losses(losses: Mapping[str, Sequence[float] | None]) -> Iterator[Check]:
    """Stages whose loss ended above its start; nothing if there are none."""
    for stage, values in losses.items():
        if rise := explain_loss_rise(values or ()):
            yield Check("Training lowers the loss", False, f"{stage}: {rise}; its learning rate is too high.")


def check_scores(models: Sequence[EvaluatedModel]) -> Iterator[Check]:
    """Teachers that are better, answers that depend on the images, a significant gain."""
    student, before, teacher = find_first(models, "ril"), find_first(models, "warm_start"), find_best_teacher(models)
    if before is not None and teacher is not None:
        lead = compare_models(teacher, before)
        text = f"Best teacher vs. warm-started student: {format_points(lead.mean, True)} points."
        yield Check("The teachers are better than the student", lead.clear and lead.mean > 0, text)
    if student is not None and student.drop is not None:
        seen = student.drop >= CLEAR * student.standard_error and student.drop > 0
        text = (
            f"With shuffled images the RIL student loses {format_points(student.drop)} points; the remaining "
            "accuracy does "
            "not come from the images."
        )
        yield Check("Answers depend on the images", seen, text)
    if student is not None and before is not None:
        gain = compare_models(student, before)
        text = (
            f"RIL student vs. warm start: {format_points(gain.mean, True)} points; significant from "
            f"{format_points(CLEAR * gain.standard_error)} points ({CLEAR:g} standard errors)."
        )
        yield Check("The gain is significant", gain.clear and gain.mean > 0, text)


def check_judge(exam: Mapping[str, Any] | None, ril: History) -> Iterator[Check]:
    """Accuracy and robustness of the judge, failed verdicts."""
    if exam is not None:
        share, cases = exam["balanced_accuracy"], exam["cases"]
        text = (
            f"Balanced accuracy {format_percent(share)} on {cases:,} labelled answers; below "
            f"{format_percent(EXAM, 0)} its "
            "rewards are noisy."
        )
        yield Check("The judge is accurate", share >= EXAM, text)
        text = f"{exam['attacks_held']} of {exam['attacks']} attacks left the verdict unchanged."
        if share < EXAM:
            text += " A judge that says the same to everything withstands all of them."
        yield Check("The judge resists attacks", share >= EXAM and exam["attacks_held"] == exam["attacks"], text)
    failed = average_steps(ril.get(names.STUDENT_FAILED))
    if failed is not None:
        text = (
            f"{format_percent(failed)} of the verdicts failed in the loop (limit {format_percent(FAILED, 0)}); "
            "their rows leave the "
            "group."
        )
        yield Check("Few verdicts fail", failed <= FAILED, text)


def check_discriminator(before: Mapping[str, float], ril: History) -> Iterator[Check]:
    """Whether it uses more than length, and whether its reward still carries a signal at the end."""
    if names.HELD_OUT_ACCURACY in before:
        acc, length = before[names.HELD_OUT_ACCURACY], before[names.LENGTH_ACCURACY]
        text = (
            f"Accuracy {format_percent(acc)} on held-out texts, {format_percent(length)} by length alone; if the "
            "two are equal, the "
            "reward is for length."
        )
        yield Check("The discriminator uses more than length", acc - length >= BEYOND_LENGTH, text)
    passed = average_last(ril.get(names.PASSED))
    if passed is not None:
        text = (
            f"In the last steps {format_percent(passed)} of the student's answers are classified as a teacher's; "
            "near 0 or "
            "100 % the similarity reward carries no signal."
        )
        yield Check("The discriminator is in balance", SATURATED < passed < 1 - SATURATED, text)


def check_loop(ril: History) -> Iterator[Check]:
    """Whether steps carry a signal, and whether the student's answers stay complete and varied."""
    equal = average_steps(ril.get(names.EQUAL_REWARDS))
    if equal is not None:
        text = (
            f"In {format_percent(equal)} of the groups all answers have the same reward; these give no policy gradient."
        )
        yield Check("Groups differ in reward", equal < EQUAL, text)
    cut = average_last(ril.get(names.STUDENT_CUT))
    if cut is not None:
        text = (
            f"{format_percent(cut)} were truncated at max_tokens in the last steps; truncated answers count as wrong."
        )
        yield Check("Answers are complete", cut <= CUT, text)
    values = ril.get(names.for_source(names.ENTROPY, STUDENT))
    begin, end = find_first_number(values), average_last(values)
    if begin and end is not None:
        text = (
            f"Entropy {end:.2f} nats per token in the last steps, {begin:.2f} in the first; near 0 all answers of a "
            "group are the same."
        )
        yield Check("The student still explores", end >= ENTROPY * begin, text)


def average_steps(values: Sequence[float] | None) -> float | None:
    """The mean over all steps."""
    return None if values is None else average_last(values, len(values))

"""Checks of the run, shown at the top of the page: each is a measured number, its limit and what it means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.inputs import History
from stages.page.scores import CLEAR, Scored, best_teacher, difference, first_of, percent, points
from stages.page.summary import first, last

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


def checks(
    models: Sequence[Scored], ril: History, exam: Mapping[str, Any] | None, discriminator: Mapping[str, float]
) -> list[Check]:
    """The checks for which this run has numbers, in the order of the pipeline."""
    return [*of_scores(models), *of_the_judge(exam, ril), *of_the_discriminator(discriminator, ril), *of_the_loop(ril)]


def of_scores(models: Sequence[Scored]) -> Iterator[Check]:
    """Teachers that are better, answers that depend on the images, a significant gain."""
    student, before, teacher = first_of(models, "ril"), first_of(models, "warm_start"), best_teacher(models)
    if before is not None and teacher is not None:
        lead = difference(teacher, before)
        text = f"Best teacher vs. warm-started student: {points(lead.mean, True)} points."
        yield Check("The teachers are better than the student", lead.clear and lead.mean > 0, text)
    if student is not None and student.drop is not None:
        seen = student.drop >= CLEAR * student.standard_error and student.drop > 0
        text = (
            f"With shuffled images the RIL student loses {points(student.drop)} points; the remaining accuracy does "
            "not come from the images."
        )
        yield Check("Answers depend on the images", seen, text)
    if student is not None and before is not None:
        gain = difference(student, before)
        text = (
            f"RIL student vs. warm start: {points(gain.mean, True)} points; significant from "
            f"{points(CLEAR * gain.standard_error)} points ({CLEAR:g} standard errors)."
        )
        yield Check("The gain is significant", gain.clear and gain.mean > 0, text)


def of_the_judge(exam: Mapping[str, Any] | None, ril: History) -> Iterator[Check]:
    """Accuracy and robustness of the judge, failed verdicts."""
    if exam is not None:
        share, cases = exam["balanced_accuracy"], exam["cases"]
        text = (
            f"Balanced accuracy {percent(share)} on {cases:,} labelled answers; below {percent(EXAM, 0)} its "
            "rewards are noisy."
        )
        yield Check("The judge is accurate", share >= EXAM, text)
        text = f"{exam['attacks_held']} of {exam['attacks']} attacks left the verdict unchanged."
        yield Check("The judge resists attacks", exam["attacks_held"] == exam["attacks"], text)
    failed = mean(ril.get(names.STUDENT_FAILED))
    if failed is not None:
        text = (
            f"{percent(failed)} of the verdicts failed in the loop (limit {percent(FAILED, 0)}); their rows leave the "
            "group."
        )
        yield Check("Few verdicts fail", failed <= FAILED, text)


def of_the_discriminator(before: Mapping[str, float], ril: History) -> Iterator[Check]:
    """Whether it uses more than length, and whether its reward still carries a signal at the end."""
    if names.HELD_OUT_ACCURACY in before:
        acc, length = before[names.HELD_OUT_ACCURACY], before[names.LENGTH_ACCURACY]
        text = (
            f"Accuracy {percent(acc)} on held-out texts, {percent(length)} by length alone; if the two are equal, the "
            "reward is for length."
        )
        yield Check("The discriminator uses more than length", acc - length >= BEYOND_LENGTH, text)
    passed = last(ril.get(names.PASSED))
    if passed is not None:
        text = (
            f"In the last steps {percent(passed)} of the student's answers are classified as a teacher's; near 0 or "
            "100 % the similarity reward carries no signal."
        )
        yield Check("The discriminator is in balance", SATURATED < passed < 1 - SATURATED, text)


def of_the_loop(ril: History) -> Iterator[Check]:
    """Whether steps carry a signal, and whether the student's answers stay complete and varied."""
    equal = mean(ril.get(names.EQUAL_REWARDS))
    if equal is not None:
        text = f"In {percent(equal)} of the groups all answers have the same reward; these give no policy gradient."
        yield Check("Groups differ in reward", equal < EQUAL, text)
    cut = last(ril.get(names.STUDENT_CUT))
    if cut is not None:
        text = f"{percent(cut)} were truncated at max_tokens in the last steps; truncated answers count as wrong."
        yield Check("Answers are complete", cut <= CUT, text)
    values = ril.get(names.by_source(names.ENTROPY, STUDENT))
    begin, end = first(values), last(values)
    if begin and end is not None:
        text = (
            f"Entropy {end:.2f} nats per token in the last steps, {begin:.2f} in the first; near 0 all answers of a "
            "group are the same."
        )
        yield Check("The student still explores", end >= ENTROPY * begin, text)


def mean(values: Sequence[float] | None) -> float | None:
    """The mean over all steps."""
    return None if values is None else last(values, len(values))

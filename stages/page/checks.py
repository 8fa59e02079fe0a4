"""What a reader should look at before believing the page: each check is a measured number, its bound and what it
means.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.page.inputs import History
from stages.page.scores import CLEAR, Scored, best_teacher, difference, first_of, percent, points
from stages.page.summary import first, last

EXAM = 0.95  # balanced accuracy of a judge whose verdicts may train a student
FAILED = 0.01  # share of verdicts that failed
BEYOND_LENGTH = 0.05  # what the discriminator has to add to the best threshold on lengths
SATURATED = 0.02  # of the student's answers, from either end: the similarity reward says nothing then
EQUAL = 0.5  # share of groups without any advantage
CUT = 0.05  # share of answers that were cut
ENTROPY = 0.25  # of what it was: below, the student has stopped trying things out


@dataclass(frozen=True)
class Check:
    """One line of the list."""

    title: str
    fine: bool
    text: str


def checks(
    models: Sequence[Scored], ril: History, exam: Mapping[str, Any] | None, discriminator: Mapping[str, float]
) -> list[Check]:
    """The checks that this run's numbers allow, in the order in which a fault would spread."""
    return [*of_scores(models), *of_the_judge(exam, ril), *of_the_discriminator(discriminator, ril), *of_the_loop(ril)]


def of_scores(models: Sequence[Scored]) -> Iterator[Check]:
    """Room to learn, answers that come from the picture, a gain that is more than chance."""
    student, before, teacher = first_of(models, "ril"), first_of(models, "warm_start"), best_teacher(models)
    if before is not None and teacher is not None:
        lead = difference(teacher, before)
        text = (
            f"The best teacher is {points(lead.mean, True)} points from the warm-started student; nobody "
            "learns from an equal."
        )
        yield Check("Teachers to learn from", lead.clear and lead.mean > 0, text)
    if student is not None and student.drop is not None:
        seen = student.drop >= CLEAR * student.standard_error and student.drop > 0
        text = (
            f"With exchanged images the RIL student loses {points(student.drop)} points; what stays was not "
            "read off the picture."
        )
        yield Check("Answers come from the pictures", seen, text)
    if student is not None and before is not None:
        gain = difference(student, before)
        text = (
            f"{points(gain.mean, True)} points over the warm start; clear from "
            f"{points(CLEAR * gain.standard_error)} on."
        )
        yield Check("The gain is clear", gain.clear and gain.mean > 0, text)


def of_the_judge(exam: Mapping[str, Any] | None, ril: History) -> Iterator[Check]:
    """Whether verdicts can be trusted."""
    if exam is not None:
        share, cases = exam["balanced_accuracy"], exam["cases"]
        text = (
            f"Balanced accuracy {percent(share)} on {cases:,} labelled answers; below {percent(EXAM, 0)} its "
            "rewards are noisy."
        )
        yield Check("The judge knows right from wrong", share >= EXAM, text)
        text = f"{exam['attacks_held']} of {exam['attacks']} attempts left its verdict as it was."
        yield Check("The judge can't be talked round", exam["attacks_held"] == exam["attacks"], text)
    failed = mean(ril.get("judge/failed"))
    if failed is not None:
        text = (
            f"{percent(failed)} failed in the loop; more than {percent(FAILED, 0)} is too many. Their rows "
            "leave the group."
        )
        yield Check("Verdicts arrive", failed <= FAILED, text)


def of_the_discriminator(before: Mapping[str, float], ril: History) -> Iterator[Check]:
    """Whether it tells sides apart by more than length, and still pays in the end."""
    if "acc" in before:
        acc, length = before["acc"], before["acc_length_only"]
        text = (
            f"Right on {percent(acc)} of held-out texts, length alone on {percent(length)}; if these meet, "
            "length is rewarded."
        )
        yield Check("The discriminator sees more than length", acc - length >= BEYOND_LENGTH, text)
    passed = last(ril.get("disc/passed"))
    if passed is not None:
        text = (
            f"In the last steps {percent(passed)} of the student's answers pass; near 0 or 100 the reward "
            "teaches nothing."
        )
        yield Check("The discriminator is in balance", SATURATED < passed < 1 - SATURATED, text)


def of_the_loop(ril: History) -> Iterator[Check]:
    """Whether steps taught anything, and whether the student's text stayed healthy."""
    equal = mean(ril.get("frac_reward_zero_std"))
    if equal is not None:
        text = f"In {percent(equal)} of the groups all answers earned the same; those teach nothing."
        yield Check("Groups differ in reward", equal < EQUAL, text)
    cut = last(ril.get("completions/clipped_ratio"))
    if cut is not None:
        text = f"{percent(cut)} were cut at max_tokens in the last steps; cut answers count as wrong."
        yield Check("Answers end by themselves", cut <= CUT, text)
    values = ril.get("entropy/student")
    begin, end = first(values), last(values)
    if begin and end is not None:
        text = (
            f"{end:.2f} nats a token in the last steps, {begin:.2f} in the first; near 0 all answers of a "
            "group are alike."
        )
        yield Check("The student still explores", end >= ENTROPY * begin, text)


def mean(values: Sequence[float] | None) -> float | None:
    """The mean over all steps."""
    return None if values is None else last(values, len(values))

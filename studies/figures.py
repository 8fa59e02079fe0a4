"""The plots on the page of a study."""

import math
from collections.abc import Sequence

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.plots import (
    GainBar,
    Line,
    Plot,
    ScoreDot,
    drop_infinite,
    plot_bars,
    plot_curves,
    plot_dots,
    plot_grouped_bars,
)
from studies.mechanism import (
    Arms,
    average_curve,
    average_figure,
    average_reward,
    compute_gains,
    find_title,
    select_common_seeds,
)
from studies.statistics import Difference, average_over_seeds

_REWARDS = (names.SIMILARITY.format(STUDENT), names.ANSWER.format(STUDENT))
LOOP_CURVES = (
    ("Similarity reward", _REWARDS[0], "Share of the student's answers classified as a teacher's."),
    ("Answer reward", _REWARDS[1], "Share of the student's answers judged correct."),
    ("Teacher's style", "styles/any", "Share of the student's answers in a teacher's style."),
    (
        "Student detected",
        names.DISC_ACCURACY_OF.format(STUDENT),
        "Share of the student's answers classified as its own.",
    ),
    (
        "Correct, negative advantage",
        names.CORRECT_NEGATIVE_ADVANTAGE,
        "Share of the student's correct answers with a negative advantage.",
    ),
)


def plot_arm_scores(arms: Arms) -> Plot:
    """Mean accuracy of each arm with its interval, and its accuracy with shuffled images."""
    rows = []
    for place, found in enumerate(arms.values()):
        interval, shuffled = average_over_seeds(found), average_figure(found, "accuracy_shuffled")
        hollow = shuffled if math.isfinite(shuffled) else None  # nan: not measured
        rows.append(ScoreDot(found[0].title, interval.mean, drop_infinite(interval.half), hollow, place % 6))
    text = "Accuracy on test questions, with the 95 % interval over units. Hollow: with shuffled images."
    return plot_dots("Scores", text, rows)


def plot_differences(arms: Arms, found: Sequence[Difference], reference: str) -> Plot | None:
    """Gain of each arm over the reference, with the interval over units; None without differences."""
    if not found:
        return None
    rows = [
        GainBar(find_title(arms, one.first), one.seeds.mean, one.seeds.half, place % 6)
        for place, one in enumerate(found)
    ]
    return plot_bars(
        f"Gain over {find_title(arms, reference)}", "Points of accuracy, with the 95 % interval over units.", rows
    )


def plot_kinds(arms: Arms, compared: Sequence[str], reference: str) -> Plot | None:
    """Gain of the arms over the reference, by kind of question; None without a common kind."""
    common = select_common_seeds({name: arms[name] for name in [*compared, reference]})
    by_arm = {find_title(arms, name): compute_gains(common[name], common[reference]) for name in compared}
    kinds = sorted(set.intersection(*(set(found) for found in by_arm.values()))) if by_arm else []
    if not kinds:
        return None
    text = f"Points of accuracy gained over {find_title(arms, reference)}, mean over seeds."
    series = {arm: [found[kind] for kind in kinds] for arm, found in by_arm.items()}
    return plot_grouped_bars("Gain by kind of question", text, kinds, series)


def plot_loop(trained: Arms) -> list[Plot]:
    """Curves of the loop, mean over seeds; columns without numbers are left out."""
    return [plot for name, column, text in LOOP_CURVES if (plot := _plot_curve(trained, name, column, text))]


def _plot_curve(trained: Arms, name: str, column: str, text: str) -> Plot | None:
    read = average_reward if column in _REWARDS else average_curve
    lines = [
        Line(find_title(trained, arm), one.steps, one.values, place % 6, dashed=place >= 6)
        for place, (arm, found) in enumerate(trained.items())
        if (one := read(found, column)) and one.shares
    ]
    return plot_curves(name, f"{text} Mean over seeds.", lines, percent=True) if lines else None

"""The plots on the page of a study."""

import math
from collections.abc import Sequence

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.plots import Bar, Line, Plot, Row, bars, curves, dots, finite, grouped
from studies.mechanism import Arms, curve, gains, mean_of, on_common_seeds, rewarded, title
from studies.statistics import Difference, mean_over_seeds

_REWARDS = (names.SIMILARITY.format(STUDENT), names.ANSWER.format(STUDENT))
CURVES = (
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


def drawn_scores(arms: Arms) -> Plot:
    """Mean accuracy of each arm with its interval, and its accuracy with shuffled images."""
    rows = []
    for place, found in enumerate(arms.values()):
        interval, shuffled = mean_over_seeds(found), mean_of(found, "accuracy_shuffled")
        hollow = shuffled if math.isfinite(shuffled) else None  # nan: not measured
        rows.append(Bar(found[0].title, interval.mean, finite(interval.half), hollow, place % 6))
    text = "Accuracy on test questions, with the 95 % interval over units. Hollow: with shuffled images."
    return dots("Scores", text, rows)


def drawn_differences(arms: Arms, found: Sequence[Difference], reference: str) -> Plot | None:
    """Gain of each arm over the reference, with the interval over units; None without differences."""
    if not found:
        return None
    rows = [Row(title(arms, one.first), one.seeds.mean, one.seeds.half, place % 6) for place, one in enumerate(found)]
    return bars(f"Gain over {title(arms, reference)}", "Points of accuracy, with the 95 % interval over units.", rows)


def drawn_kinds(arms: Arms, compared: Sequence[str], reference: str) -> Plot | None:
    """Gain of the arms over the reference, by kind of question; None without a common kind."""
    common = on_common_seeds({name: arms[name] for name in [*compared, reference]})
    by_arm = {title(arms, name): gains(common[name], common[reference]) for name in compared}
    kinds = sorted(set.intersection(*(set(found) for found in by_arm.values()))) if by_arm else []
    if not kinds:
        return None
    text = f"Points of accuracy gained over {title(arms, reference)}, mean over seeds."
    series = {arm: [found[kind] for kind in kinds] for arm, found in by_arm.items()}
    return grouped("Gain by kind of question", text, kinds, series)


def drawn_loop(trained: Arms) -> list[Plot]:
    """Curves of the loop, mean over seeds; columns without numbers are left out."""
    return [plot for name, column, text in CURVES if (plot := _drawn_curve(trained, name, column, text))]


def _drawn_curve(trained: Arms, name: str, column: str, text: str) -> Plot | None:
    read = rewarded if column in _REWARDS else curve
    lines = [
        Line(title(trained, arm), one.steps, one.values, place % 6, dashed=place >= 6)
        for place, (arm, found) in enumerate(trained.items())
        if (one := read(found, column)) and one.shares
    ]
    return curves(name, f"{text} Mean over seeds.", lines, percent=True) if lines else None

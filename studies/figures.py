"""The plots on the page of a study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.page.plots import (
    INK,
    GainBar,
    Line,
    Plot,
    ScoreDot,
    describe_line,
    draw_line,
    drawing,
    drop_infinite,
    format_axis_as_percent,
    plot_bars,
    plot_curves,
    plot_dots,
    plot_grouped_bars,
    render_svg,
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
_PANELS_A_ROW = 3
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


@dataclass(frozen=True)
class CurvePanel:
    """One pair of axes of a figure."""

    title: str
    lines: Sequence[Line]
    percent: bool


def plot_mechanism(shown: Arms) -> Plot:
    """Rewards by source, D's accuracy, faults, entropy and validation by step, of a few arms, as panels of one figure.

    A panel without numbers is left out.
    """
    rewards = [
        CurvePanel(title, _draw_sides(shown, column), True)
        for title, column in (("Similarity reward", names.SIMILARITY), ("Answer reward", names.ANSWER))
    ]
    panels = [
        *rewards,
        CurvePanel("Discriminator's accuracy", _draw_column(shown, names.DISC_ACCURACY, "curves"), True),
        CurvePanel("Answers that are a teacher's fault", _draw_column(shown, "fault/any", "validations"), True),
        CurvePanel("Entropy per token, nats", _draw_sides(shown, names.for_source(names.ENTROPY, "{}")), False),
        CurvePanel("Validation accuracy", _draw_column(shown, names.VALIDATION, "validations"), True),
    ]
    text = (
        "By step, mean over seeds. Solid: the student's answers; dashed: the teachers', for the two rewards and the "
        "entropy; answers that are only imitated all count as correct. Faults and accuracy are those of greedy "
        "validation answers."
    )
    return plot_panels("Mechanism", text, [one for one in panels if one.lines])


def plot_panels(title: str, caption: str, panels: Sequence[CurvePanel]) -> Plot:
    """Small axes side by side with one legend."""
    rows = -(-len(panels) // _PANELS_A_ROW)
    with drawing(9.0, 2.3 * rows + 0.4) as (figure, empty):
        empty.remove()
        handles: dict[str, Any] = {}
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, _PANELS_A_ROW, place + 1)
            axes.patch.set_visible(False)
            for line in panel.lines:
                draw_line(axes, line)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
            axes.set_title(panel.title, color=INK, fontsize=9.0)
            axes.set_xlabel("step")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
            if panel.percent:
                format_axis_as_percent(axes.yaxis)
                axes.set_ylim(-0.03, 1.03)
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3, labelcolor=INK)
        said = ". ".join(
            f"{panel.title}: {'; '.join(describe_line(line, panel.percent) for line in panel.lines)}"
            for panel in panels
        )
        return Plot(title, caption, render_svg(figure, title, said))


def _draw_sides(shown: Arms, column: str) -> list[Line]:
    """The curves of the student and, dashed, of all teachers."""
    lines = []
    for place, (name, found) in enumerate(shown.items()):
        for source, dashed in ((STUDENT, False), (TEACHERS, True)):
            one = average_reward(found, column.format(source))
            title = f"{find_title(shown, name)}{', teachers' if dashed else ''}"
            lines += [Line(title, one.steps, one.values, place % 6, dashed=dashed)] if one else []
    return lines


def _draw_column(shown: Arms, column: str, of: Literal["curves", "validations"]) -> list[Line]:
    return [
        Line(find_title(shown, name), one.steps, one.values, place % 6, smooth=of == "curves", dots=of != "curves")
        for place, (name, found) in enumerate(shown.items())
        if (one := average_curve(found, column, of))
    ]

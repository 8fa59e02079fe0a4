"""Gain over the base student of this run and all other experiments, as in the paper's Figure 1."""

from collections.abc import Sequence
from typing import Any

from stages.benchmarks.paper import list_paper_scores
from stages.benchmarks.scores import NORMAL_95
from stages.page.comparison import ExperimentList, ExperimentSummary
from stages.page.evaluated_models import EvaluatedModel, compare_models, find_first
from stages.page.plots import GainBar, Plot, plot_bars, plot_grouped_bars
from stages.page.summary import compute_relative_gain

RIL, WARM_START, OTHER = 0, 4, 2  # colours
LONGEST_NAME = 22  # characters of an experiment's name in the figure
METHODS = ("GRPO", "Dr.GRPO", "RIL (one teacher)", "RIL (both teachers)")


def plot_figure_1(models: Sequence[EvaluatedModel], found: ExperimentList) -> list[Plot]:
    """Gains of the students of this run and of every experiment, and the gains that the paper reports."""
    rows = [row for row in (make_warm_start_bar(models), *map(make_student_bar, found.experiments)) if row is not None]
    if not rows:
        return [plot_paper_gains()]
    text = (
        "Gain of the student over its base on the held-out questions, in per cent of the base's score; whiskers are "
        "95 % intervals for the choice of questions."
    )
    return [plot_bars("Gain over the base student", text, rows), plot_paper_gains()]


def make_warm_start_bar(models: Sequence[EvaluatedModel]) -> GainBar | None:
    """The gain of the warm start alone."""
    before, base = find_first(models, "warm_start"), find_first(models, "base")
    if before is None or base is None or not base.accuracy:
        return None
    gain = compare_models(before, base)
    return GainBar(
        "warm start alone", gain.mean / base.accuracy, NORMAL_95 * gain.standard_error / base.accuracy, WARM_START
    )


def make_student_bar(experiment: ExperimentSummary) -> GainBar | None:
    """The gain of one experiment's student."""
    gain = compute_relative_gain(experiment.summary)
    if gain is None:
        return None
    return GainBar(
        f"{shorten_name(experiment.name)} ({experiment.objective})",
        gain[0],
        NORMAL_95 * gain[1],
        RIL if experiment.here else OTHER,
    )


def shorten_name(name: str) -> str:
    """The beginning of a name that is too long for a label."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def plot_paper_gains() -> Plot:
    """The paper's gains: unweighted mean over its fourteen benchmarks, relative to each base row."""
    means = {name: sum(row.values()) / len(row) for name, row in list_paper_scores().items()}
    bases = [name for name in means if " + " not in name]
    series = {method: [means[f"{base} + {method}"] / means[base] - 1 for base in bases] for method in METHODS}
    text = (
        "Quoted from arXiv 2510.19307, Tables 1 and 2, not measured here: gain of the mean over fourteen benchmarks, "
        "in per cent of the base's. The paper reports no error bars. The questions are not those of this run, so the "
        "two figures can't be compared bar by bar."
    )
    return plot_grouped_bars("The paper's gains (quoted)", text, [break_name(base) for base in bases], series)


def break_name(name: str) -> str:
    """A model's name on two lines."""
    family, _, rest = name.rpartition("-")
    return f"{family}\n{rest}"


def tabulate_gains(found: ExperimentList) -> list[dict[str, Any]]:
    """One row per experiment; None for numbers that it does not have."""
    names = (
        "accuracy",
        "accuracy_error",
        "gain_over_warm_start",
        "gain_over_warm_start_error",
        "tokens",
        "best_teacher",
    )
    rows = []
    for one in found.experiments:
        gain = compute_relative_gain(one.summary)
        numbers = {name: one.summary.get(name) for name in names}
        rows.append({"experiment": one, **numbers, "relative": None if gain is None else gain[0]})
    return rows

"""Gain over the base student of this run and all other experiments, as in the paper's Figure 1."""

from collections.abc import Sequence
from typing import Any

from stages.benchmarks.paper import quoted
from stages.benchmarks.scores import NORMAL_95
from stages.page.experiments import Experiment, Found
from stages.page.plots import Plot, Row, bars, grouped
from stages.page.scores import Scored, difference, first_of
from stages.page.summary import relative

RIL, WARM_START, OTHER = 0, 4, 2  # colours
LONGEST = 22  # characters of an experiment's name in the figure
METHODS = ("GRPO", "Dr.GRPO", "RIL (one teacher)", "RIL (both teachers)")


def figure_1(models: Sequence[Scored], found: Found) -> list[Plot]:
    """Gains of the students of this run and of every experiment, and the gains that the paper reports."""
    rows = [row for row in (warm_start(models), *map(student, found.experiments)) if row is not None]
    if not rows:
        return [paper()]
    text = (
        "Gain of the student over its base on the held-out questions, in per cent of the base's score; whiskers are "
        "95 % intervals for the choice of questions."
    )
    return [bars("Gain over the base student", text, rows), paper()]


def warm_start(models: Sequence[Scored]) -> Row | None:
    """The gain of the warm start alone."""
    before, base = first_of(models, "warm_start"), first_of(models, "base")
    if before is None or base is None or not base.accuracy:
        return None
    gain = difference(before, base)
    return Row(
        "warm start alone", gain.mean / base.accuracy, NORMAL_95 * gain.standard_error / base.accuracy, WARM_START
    )


def student(experiment: Experiment) -> Row | None:
    """The gain of one experiment's student."""
    gain = relative(experiment.summary)
    if gain is None:
        return None
    return Row(
        f"{cut(experiment.name)} ({experiment.objective})",
        gain[0],
        NORMAL_95 * gain[1],
        RIL if experiment.here else OTHER,
    )


def cut(name: str) -> str:
    """The beginning of a name that is too long for a label."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def paper() -> Plot:
    """The paper's gains: unweighted mean over its fourteen benchmarks, relative to each base row."""
    means = {name: sum(row.values()) / len(row) for name, row in quoted().items()}
    bases = [name for name in means if " + " not in name]
    series = {method: [means[f"{base} + {method}"] / means[base] - 1 for base in bases] for method in METHODS}
    text = (
        "Quoted from arXiv 2510.19307, Tables 1 and 2, not measured here: gain of the mean over fourteen benchmarks, "
        "in per cent of the base's. The paper reports no error bars. The questions are not those of this run, so the "
        "two figures can't be compared bar by bar."
    )
    return grouped("The paper's gains (quoted)", text, [shorter(base) for base in bases], series)


def shorter(name: str) -> str:
    """A model's name on two lines."""
    family, _, rest = name.rpartition("-")
    return f"{family}\n{rest}"


def table(found: Found) -> list[dict[str, Any]]:
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
        gain = relative(one.summary)
        numbers = {name: one.summary.get(name) for name in names}
        rows.append({"experiment": one, **numbers, "relative": None if gain is None else gain[0]})
    return rows

"""The section of a study's page that subtracts arms from each other."""

import math
from collections.abc import Sequence

from stages.page.evaluated_models import format_points
from studies.document import Section, Table
from studies.figures import plot_differences
from studies.findings import VERDICT_WORDS, find_difference, find_reference_arm
from studies.mechanism import Arms, find_title
from studies.statistics import Difference, Interval
from studies.study import Study

DASH = "–"


def tabulate_differences(arms: Arms, differences: Sequence[Difference], title: str = "") -> Table:
    """A row for each difference: mean, interval, pooled questions, p values, detectable difference, verdict."""
    rows = []
    for found in differences:
        pooled = (
            f"{format_points(found.pooled, True)} ({format_points(found.low, True)} to "
            f"{format_points(found.high, True)})"
        )
        rows.append(
            [
                f"{find_title(arms, found.first)} − {find_title(arms, found.second)}",
                format_points(found.seeds.mean, True),
                format_half_width(found.seeds),
                pooled,
                f"{found.wins}/{found.losses}" + (f" ({found.left_out} without a verdict)" if found.left_out else ""),
                f"{found.p_value:.2g}",
                _format_p_value(found.unit_p_value),
                _format_p_value(found.holm_p_value),
                DASH if math.isnan(found.detectable) else format_points(found.detectable),
                VERDICT_WORDS[found.verdict],
            ]
        )
    heads = [
        "difference",
        "points",
        "± (95 %)",
        "pooled",
        "won/lost",
        "p (pooled)",
        "p",
        "p (Holm)",
        "detectable",
        "verdict",
    ]
    return Table(title, "", heads, rows)


def make_differences(study: Study, arms: Arms, differences: Sequence[Difference]) -> Section:
    """The section of all differences: primary ones first, where there are any."""
    explored = "Exploratory differences are not corrected, and have none (–). " if study.primary else ""
    text = (
        "In percentage points of accuracy. The unit is the data set, or the training seed where there is only one data "
        "set. Points: mean over units with its 95 % t-interval. Pooled: all questions of all seeds, with a bootstrap "
        "interval; won/lost: questions that only one of the two arms answers correctly, with McNemar's exact p. Pooled "
        "figures cover the choice of questions, not that of the seed. p: two-sided t-test over units; p (Holm): the "
        f"same after Holm's correction for all differences of this table, which the verdict uses at 5 %. "
        f"{explored}Detectable: "
        "the minimum difference that a two-sided t-test at 5 % detects with 80 % power at the measured spread. "
        "Intervals and detectable differences are not corrected."
    )
    lowest = find_reference_arm(study)
    against = [one for name in arms if name != lowest and (one := find_difference(arms, name, lowest))]
    plots = [plot] if (plot := plot_differences(arms, against, lowest)) else []
    primary, others = ([one for one in differences if one.exploratory == explored] for explored in (False, True))
    tables = [tabulate_differences(arms, primary, "Primary" if others else "")] if primary else []
    tables += [tabulate_differences(arms, others, "Exploratory")] if others else []
    return Section("Differences", text, tables, plots)


def _format_p_value(p: float) -> str:
    return DASH if math.isnan(p) else f"{p:.2g}"


def format_half_width(interval: Interval) -> str:
    """Half of an interval in points; a dash where there is none."""
    return DASH if math.isnan(interval.half) else format_points(interval.half)

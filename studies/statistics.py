"""What several seeds say: means with t-intervals, paired differences, and what the design could have seen at all.

The unit is the world. Seeds of training in one world share its teachers and its questions, so their mean counts once;
only where there is a single world, each seed is a unit, and nothing is said of other worlds.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stages.benchmarks.comparing import bootstrap_interval, mcnemar_p_value
from studies.records import NO_VERDICT, StudyRecord

CONFIDENCE, POWER = 0.95, 0.8
LEVEL = 0.05  # of the tests: the chance of one false statement in a study, after Holm's correction
_GRID = 2_000  # quantiles of the chi-square distribution


class Unpaired(ValueError):
    """Two arms that were not run on the same questions."""


@dataclass(frozen=True)
class Interval:
    """A mean over units with the 95 % t-interval; without one (nan) where there are fewer than two units."""

    mean: float
    half: float  # half its width
    units: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


@dataclass(frozen=True)
class Difference:
    """One arm less another, in shares of right answers, where both were run."""

    first: str
    second: str
    seeds: Interval  # over units
    pooled: float  # over all questions of all seeds
    low: float  # 95 % bootstrap interval of that; it covers the choice of questions, not that of the seed
    high: float
    wins: int  # questions that the first has right and the second wrong
    losses: int
    left_out: int  # questions to which either has an answer without a verdict
    p_value: float  # McNemar's exact test on those
    detectable: float  # nan with fewer than two units
    unit_p_value: float  # two-sided t-test over units; nan with fewer than two units
    holm_p_value: float  # that, by Holm's correction for the differences it is tested with; alone the same
    exploratory: bool = False  # not among the primary differences of a protocol; then not corrected

    @property
    def verdict(self) -> str:
        """What may be said.

        "more" or "less" where it is significant after Holm's correction; "more_alone" or "less_alone" where only the
        uncorrected t-interval excludes zero, "more_explored" or "less_explored" where that is all that is asked; "open"
        where it holds zero or isn't there.
        """
        if math.isnan(self.seeds.half) or self.seeds.low <= 0 <= self.seeds.high:
            return "open"
        side = "more" if self.seeds.mean > 0 else "less"
        if self.exploratory:
            return f"{side}_explored"
        return side + ("" if self.holm_p_value <= LEVEL else "_alone")


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and t-interval of independent values. Raises StatisticsError when there are none."""
    from scipy.stats import t

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, math.nan, count)
    error = statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error, count)


def t_test_p_value(values: Sequence[float]) -> float:
    """Two-sided p of the t-test that the mean of independent values is zero; nan for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / error, len(values) - 1))


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values at which the chance of any false rejection among them stays below the level.

    The k-th smallest of n is multiplied by n - k + 1, and is never below a smaller one (Holm 1979). nan stays nan and
    does not count.
    """
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    adjusted, largest = list(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def correct_differences(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's correction for all of them together."""
    adjusted = adjust_p_values([one.unit_p_value for one in differences])
    return [replace(one, holm_p_value=p) for one, p in zip(differences, adjusted, strict=True)]


def minimum_detectable(values: Sequence[float]) -> float:
    """The smallest true mean that a two-sided t-test at 5 % sees in 80 % of repetitions, at the spread of `values`.

    nan for fewer than two values.
    """
    return math.nan if len(values) < 2 else compute_detectable(statistics.stdev(values), len(values), LEVEL)


def compute_detectable(deviation: float, count: int, level: float) -> float:
    """The smallest true mean that a two-sided t-test at `level` over `count` units sees in 80 % of repetitions.

    `deviation` is the standard deviation of a unit. Power is the normal chance to pass the test, averaged over the
    chi-square distribution of the measured spread (which is what the noncentral t distribution says; scipy's own fails
    for few values). nan for fewer than two units.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    if count < 2:
        return math.nan
    edge = t.ppf(1 - level / 2, count - 1)
    edges = edge * np.sqrt(chi2.ppf((np.arange(_GRID) + 0.5) / _GRID, count - 1) / (count - 1))

    def power(shift: float) -> float:
        return float((norm.sf(edges - shift) + norm.cdf(-edges - shift)).mean())

    return deviation / math.sqrt(count) * float(brentq(lambda shift: power(shift) - POWER, 0.0, 10 * edge))


def average_by_unit(values: Mapping[tuple[int, int], float]) -> list[float]:
    """One value a unit from values by (world, seed)."""
    worlds: dict[int, list[float]] = defaultdict(list)
    for (world, _), value in sorted(values.items()):
        worlds[world].append(value)
    if len(worlds) == 1:
        return next(iter(worlds.values()))
    return [statistics.fmean(found) for found in worlds.values()]


def average_over_seeds(records: Sequence[StudyRecord]) -> Interval:
    """Accuracy of one arm."""
    return t_interval(average_by_unit({(one.world, one.seed): float(one.scores["accuracy"]) for one in records}))


def compute_difference(first: Sequence[StudyRecord], second: Sequence[StudyRecord]) -> Difference | None:
    """The first arm less the second, over the seeds that both have; None where there is no such seed.

    Raises Unpaired when the two answered different questions.
    """
    others = {(one.world, one.seed): one for one in second}
    pairs = [(one, others[one.world, one.seed]) for one in first if (one.world, one.seed) in others]
    if not pairs:
        return None
    for one, other in pairs:
        if one.questions_sha256 != other.questions_sha256 or len(one.right) != len(other.right):
            raise Unpaired(f"{one.name} and {other.name} answered different questions; run one of them again")
    steps = {(a.world, a.seed): a.scores["accuracy"] - b.scores["accuracy"] for a, b in pairs}
    units = average_by_unit(steps)
    whole = np.concatenate([_read_marks(a.right) - _read_marks(b.right) for a, b in pairs])
    every = whole[np.isfinite(whole)]
    if not len(every):
        raise Unpaired(f"{pairs[0][0].name} and {pairs[0][1].name} have no question on which both have a verdict")
    wins, losses = int((every > 0).sum()), int((every < 0).sum())
    low, high = bootstrap_interval(every, seed=0)
    return Difference(
        first=pairs[0][0].arm,
        second=pairs[0][1].arm,
        seeds=t_interval(units),
        pooled=float(every.mean()),
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        left_out=len(whole) - len(every),
        p_value=mcnemar_p_value(wins, losses),
        detectable=minimum_detectable(units),
        unit_p_value=(alone := t_test_p_value(units)),
        holm_p_value=alone,
    )


def _read_marks(right: str) -> np.ndarray:
    return np.array([math.nan if mark == NO_VERDICT else int(mark) for mark in right], dtype=float)

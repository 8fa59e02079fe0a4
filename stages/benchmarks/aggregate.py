"""Averages over scored rows, with standard errors; a row may belong to several groups."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ScoredRow = tuple[Mapping[str, tuple[str, ...]], float]  # groups of a row, its score


@dataclass(frozen=True)
class Mean:
    """An average of scores from 0 to 1, and its standard error."""

    value: float
    error: float


Aggregate = Callable[[Sequence[ScoredRow]], Mean]


def micro_average(rows: Sequence[ScoredRow]) -> Mean:
    """Returns the mean over rows, equally weighted."""
    scores = [score for _, score in rows]
    if not scores:
        return Mean(0.0, math.inf)
    return Mean(statistics.fmean(scores), _standard_deviation(scores) / math.sqrt(len(scores)))


def macro_average(group: str) -> Aggregate:
    """Returns an average that weights the values of `group` equally; rows without one form their own value."""

    def mean(rows: Sequence[ScoredRow]) -> Mean:
        means = [micro_average(part) for part in group_by_value(rows, group).values()]
        if not means:
            return Mean(0.0, math.inf)
        error = math.sqrt(sum(one.error**2 for one in means)) / len(means)
        return Mean(statistics.fmean(one.value for one in means), error)

    return mean


def group_by_value(rows: Sequence[ScoredRow], group: str) -> dict[str, list[ScoredRow]]:
    """Returns the rows of each value of `group`, values in alphabetical order."""
    found: dict[str, list[ScoredRow]] = {}
    for row in rows:
        for value in row[0].get(group, ("none",)):
            found.setdefault(value, []).append(row)
    return dict(sorted(found.items()))


def join_values(rows: Sequence[ScoredRow], group: str) -> list[ScoredRow]:
    """Returns the rows with all values of `group` joined into one, in alphabetical order: "ocr_spat"."""
    return [({**groups, group: ("_".join(sorted(groups.get(group, ("none",)))),)}, score) for groups, score in rows]


def _standard_deviation(scores: Sequence[float]) -> float:
    return statistics.pstdev(scores)

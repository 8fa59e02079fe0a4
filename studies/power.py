"""How many worlds a comparison needs, from its tuning records: what the design can see before it is run."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studies.rates import Chosen
from studies.records import LAST_TWO, StudyRecord
from studies.runs import TUNING
from studies.statistics import LEVEL, compute_detectable
from studies.study import Study

_MOST = 1_000  # worlds


@dataclass(frozen=True)
class PowerRow:
    """One primary difference as the tuning worlds show it."""

    first: str
    second: str
    worlds: int  # tuning worlds
    mean: float
    deviation: float  # of the difference between worlds
    detectable: float  # with the planned worlds
    needed: int | None  # worlds for the wanted difference; None: more than can be counted


def list_power(study: Study, records: Sequence[StudyRecord], chosen: Chosen, wanted: float) -> Iterator[PowerRow]:
    """What the t-test over worlds sees of each primary difference, at the strictest level of Holm's correction.

    Differences are of the mean of the last two validation scores, at the chosen values. Their spread contains that of
    the validation questions, so the same number of test questions or more has no larger one. Differences with an arm
    that has no tuning records (the teachers, arms taken from another study) are left out. `wanted` is a share.
    """
    level = LEVEL / max(len(study.primary), 1)
    for first, second in study.primary:
        sides = [_read_scores(records, name, chosen) for name in (first, second)]
        common = sorted(sides[0].keys() & sides[1].keys())
        if len(common) < 2:
            continue
        gaps = [sides[0][at] - sides[1][at] for at in common]
        deviation = statistics.stdev(gaps)
        yield PowerRow(
            first,
            second,
            len(common),
            statistics.fmean(gaps),
            deviation,
            compute_detectable(deviation, len(study.seeds), level),
            count_worlds(deviation, wanted, level),
        )


def count_worlds(deviation: float, wanted: float, level: float) -> int | None:
    """The smallest number of worlds at which a difference of `wanted` is seen with 80 % power; None above 1,000."""
    low, high = 2, _MOST
    if compute_detectable(deviation, high, level) > wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if compute_detectable(deviation, middle, level) <= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def _read_scores(records: Sequence[StudyRecord], arm: str, chosen: Chosen) -> dict[tuple[int, int], float]:
    """The scores of one arm at its chosen value, by world and seed."""
    return {
        (one.world, one.seed): one.validation[LAST_TWO]
        for one in records
        if one.purpose == TUNING and one.arm == arm and one.swept == chosen.get(arm, math.nan)
    }

"""What an arm costs: time of cores, of its loop and of all stages that it needs, and tokens of its loop."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from studies.loop_tokens import READ, SAMPLED
from studies.mechanism import average_finite
from studies.records import StudyRecord


@dataclass(frozen=True)
class LoopCost:
    """What the loop of an arm took, mean over seeds; nan where it was not measured."""

    core_seconds: float
    sampled: float  # tokens
    read: float

    @property
    def tokens(self) -> float:
        """Tokens sampled and read; what was not needed counts 0."""
        return sum(value for value in (self.sampled, self.read) if math.isfinite(value))


def average_loop_cost(records: Sequence[StudyRecord]) -> LoopCost:
    """The cost of the loop of an arm."""
    return LoopCost(
        average_finite(one.core_seconds.get("ril", math.nan) for one in records),
        average_finite(one.tokens.get(SAMPLED, math.nan) for one in records),
        average_finite(one.tokens.get(READ, math.nan) for one in records),
    )


def find_used(records: Iterable[StudyRecord]) -> dict[str, float]:
    """Core-seconds of every stage that was timed, by its key, and by name and data set."""
    used: dict[str, float] = {}
    for one in records:
        for stage, value in one.core_seconds.items():
            used.setdefault(f"{stage} {one.world}", value)
            used[one.stages.get(stage, "")] = value
    return used


def sum_core_seconds(used: Mapping[str, float], record: StudyRecord) -> float:
    """Core-seconds of all stages that a run needs, whichever run executed them; nan where one was never timed.

    A stage that was taken from DVC's cache under another key counts as the one of its name on the same data set.
    """
    stages = record.stages.items()
    return sum(used.get(key, used.get(f"{stage} {record.world}", math.nan)) for stage, key in stages) or math.nan

"""How each arm came to its score: what its loop rewarded, what the discriminator saw, how it writes now."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from studies.records import StudyRecord

Arms = Mapping[str, Sequence[StudyRecord]]  # the compared records of each arm, by its name, in the order of the study
_SMOOTHED = 5  # steps that a share of style is the mean of, so that one step of few answers is no onset
END_STEPS = 10  # steps at either end of a curve that a figure of the tables is the mean of


@dataclass(frozen=True)
class Curve:
    """One column of the loop's history, mean over the seeds of an arm."""

    arm: str
    steps: list[float]
    values: list[float]

    @property
    def start(self) -> float:
        """Mean of the first steps; nan where nothing was measured."""
        return average_finite(self.values[:END_STEPS])

    @property
    def end(self) -> float:
        """Mean of the last steps."""
        return average_finite(self.values[-END_STEPS:])

    @property
    def shares(self) -> bool:
        """Whether all values are shares; GAD is rewarded with D's score itself, which is none."""
        return all(0 <= value <= 1 for value in self.values if math.isfinite(value))


def find_title(arms: Arms, name: str) -> str:
    """What the page calls an arm."""
    return arms[name][0].title


def select_common_seeds(arms: Arms) -> dict[str, list[StudyRecord]]:
    """The records of the seeds that all arms have; without such seeds every arm is left with none."""
    seeds = set.intersection(*({(one.world, one.seed) for one in found} for found in arms.values()))
    return {name: [one for one in found if (one.world, one.seed) in seeds] for name, found in arms.items()}


def average_finite(values: Iterable[float]) -> float:
    """Mean of the finite values; nan where there are none."""
    found = [value for value in values if math.isfinite(value)]
    return sum(found) / len(found) if found else math.nan


def average_curve(
    records: Sequence[StudyRecord], column: str, of: Literal["curves", "validations"] = "curves"
) -> Curve | None:
    """The mean over seeds of one column of the loop's history or validation, step by step; None where no seed has
    it.
    """
    tables = [record.curves if of == "curves" else record.validations for record in records]
    having = [columns for columns in tables if any(map(math.isfinite, columns.get(column, [])))]
    if not having:
        return None
    by_step: dict[float, list[float]] = defaultdict(list)
    for columns in having:
        for step, value in zip(columns[names.STEP], columns[column], strict=True):
            by_step[step].append(value)
    steps = sorted(by_step)
    return Curve(records[0].arm, steps, [average_finite(by_step[step]) for step in steps])


def average_reward(records: Sequence[StudyRecord], column: str) -> Curve | None:
    """The curve of a reward; None where it was 0 throughout, which is how the loop logs one that is not given."""
    found = average_curve(records, column)
    return found if found is not None and any(value for value in found.values if math.isfinite(value)) else None


def find_onset(record: StudyRecord) -> int | None:
    """The step by which half of what the student did not write in a teacher's style at the start is written so; None:
    never.
    """
    shares = record.curves.get("styles/any", [])
    smooth = [average_finite(shares[max(0, place - _SMOOTHED + 1) : place + 1]) for place in range(len(shares))]
    half = (1 + smooth[_SMOOTHED - 1]) / 2 if len(smooth) >= _SMOOTHED else math.nan
    if not shares:
        return None
    steps = zip(record.curves[names.STEP], smooth, strict=True)
    return next((int(step) for step, share in steps if share >= half), None)


def list_sources(records: Sequence[StudyRecord]) -> list[str]:
    """Who answered in the loop: the student first, then teachers by name."""
    found = {
        source
        for record in records
        for column, values in record.curves.items()
        for name in (names.SIMILARITY, names.ANSWER, names.ADVANTAGE)
        if (source := names.source_of(column, name)) and any(map(math.isfinite, values))
    }
    if len(found - {STUDENT, TEACHERS}) == 1:
        found.discard(TEACHERS)  # all teachers together, which is the only one once more
    return sorted(found, key=lambda name: (name != STUDENT, name))


def find_ends(records: Sequence[StudyRecord], column: str) -> tuple[float, float]:
    """Start and end of a column's curve; nan where there is none."""
    found = average_curve(records, column)
    return (math.nan, math.nan) if found is None else (found.start, found.end)


def score_by_kind(records: Sequence[StudyRecord]) -> dict[str, float]:
    """Share of right test answers by kind of question, mean over seeds."""
    kinds = sorted({kind for record in records for kind in record.scores.get("by_kind", {})})
    return {kind: average_finite(record.scores["by_kind"].get(kind, math.nan) for record in records) for kind in kinds}


def compute_gains(records: Sequence[StudyRecord], reference: Sequence[StudyRecord]) -> dict[str, float]:
    """By how much more is right than in the reference, by kind of question, where both have the kind."""
    before = score_by_kind(reference)
    return {kind: share - before[kind] for kind, share in score_by_kind(records).items() if kind in before}


def quote_answer(records: Sequence[StudyRecord], kind: str) -> str:
    """What the first of an arm's records answered to its first test question of a kind, with a mark; empty where it has
    none.
    """
    found = next((one for one in records[0].answers if one["kind"] == kind), None)
    return "" if found is None else f"{'✓' if found['correct'] else '✗'} {found['response']}"


def average_figure(records: Sequence[StudyRecord], name: str) -> float:
    """Mean over seeds of one figure of the scores."""
    return average_finite(float(record.scores.get(name, math.nan)) for record in records)

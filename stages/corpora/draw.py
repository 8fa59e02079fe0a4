"""Distributes the rows of a spool over the splits; no image is in two of them, and no drawn question without one.

Rows that are given to a split come first, those of `test` before all others, so that nothing takes them away. What is
not given to a split is drawn over the splits without rows of their own. All is a function of the order of the rows.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from stages.config.questions import Questions
from stages.config.splits import Split
from stages.corpora.adapters import UnusableRow
from stages.corpora.reject_log import RejectLog
from stages.corpora.source import UnusableData
from stages.corpora.spool import RowSpool, SpooledRow

LEARNED: tuple[Split, ...] = ("warm_start", "imitation")
HELD_OUT: tuple[Split, ...] = ("validation", "test")
# Rows with these targets are placed one group after the other.
_TURNS: tuple[tuple[str | None, ...], ...] = (
    ("test",),
    ("validation",),
    ("warm_start",),
    ("imitation",),
    (None, "train"),
)
_SHOWN = 12  # characters of a hash in a reason

Sources = Mapping[int | None, float]  # rows that a source may have in a split; None: all sources together


@dataclass(frozen=True)
class Plan:
    """What may go where."""

    allowed: Mapping[str | None, tuple[Split, ...]]  # by target
    wanted: Mapping[Split, Sources]


def plan_draw(found: Collection[tuple[int, str | None]], questions: Questions) -> Plan:
    """Returns the plan for data in which these sources have rows of these targets.

    A split that rows are given to takes no others. `train` is drawn over the rest of `LEARNED`, and over the held-out
    splits that nothing else could fill. Raises UnusableData if the sources of a split with `all` rows have weights.
    """
    splits = tuple(questions.splits)
    targets = {target for _, target in found}
    free = tuple(split for split in splits if split not in targets)
    allowed: dict[str | None, tuple[Split, ...]] = {split: (split,) for split in splits}
    allowed[None] = free
    allowed["train"] = tuple(split for split in free if split in LEARNED or None not in targets)
    wanted = {}
    for split in splits:
        sources = sorted({source for source, target in found if split in allowed[target]})
        wanted[split] = _divide(questions, split, sources)
    return Plan(allowed, wanted)


def _divide(questions: Questions, split: Split, sources: Sequence[int]) -> Sources:
    """Returns how many rows of a split each source has: by the largest remainder if one has a weight."""
    count = questions.splits[split]
    weights = [questions.sources[source].weight if questions.sources else None for source in sources]
    if not any(weights):
        return {None: math.inf if count == "all" else count}
    if count == "all":
        raise UnusableData(
            f"questions.splits.{split} is all, but its sources have weights; write a number, or remove the weights"
        )
    parts = [weight or 1.0 for weight in weights]
    exact = [count * part / sum(parts) for part in parts]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(sources)), key=lambda place: (whole[place] - exact[place], place))
    for place in by_remainder[: count - sum(whole)]:
        whole[place] += 1
    return dict(zip(sources, whole, strict=True))


class Draw:
    """The rows in the splits so far."""

    def __init__(self, spool: RowSpool, questions: Questions, log: RejectLog) -> None:
        """All rows are in `spool`; rows that share an image with another split are written to `log`."""
        self.spool, self._questions, self._log = spool, questions, log
        self.rejected = 0  # rows of the spool
        self.dropped = 0  # of these for near-duplicates, as asked for
        self._placed: Counter[tuple[Split, int | None]] = Counter()  # by split and source; None: all sources
        self._taken: Counter[int] = Counter()  # by source
        self.plan = plan_draw(spool.targets, questions)

    def count(self, split: Split, source: int | None = None) -> int:
        """Returns the number of rows in a split, of one source or of all."""
        return self._placed[split, source]

    def place_rows(self) -> None:
        """Puts rows into all splits until they are full; rejects rows whose images are in several."""
        for row in self._iter_rows():
            allowed = self.plan.allowed[row.origin.target]
            keys = self._find_keys(row, allowed)
            owners = self.spool.find_owners(keys) if allowed else {}
            if row.origin.target not in HELD_OUT and (not allowed or self._reaches_limit(row)):
                continue  # not needed
            if reason := _find_conflict(owners, allowed):
                self._reject(row, *reason)
                continue
            split = _name_split(owners) or self._find_emptiest(allowed, row)
            self.spool.own(split, keys)
            self._take(row, split)

    def replace_near_duplicates(self) -> None:
        """Draws the splits for training again, without what is nearly a held-out image or a held-out question."""
        self.spool.clear(LEARNED)
        for split in LEARNED:
            self._taken.subtract({s: n for (of, s), n in self._placed.items() if of == split and s is not None})
        self._placed = Counter({key: count for key, count in self._placed.items() if key[0] not in LEARNED})
        for row in self._iter_rows():
            allowed = [split for split in self.plan.allowed[row.origin.target] if split in LEARNED]
            if not allowed or self._reaches_limit(row):
                continue
            owners = self.spool.find_owners(row.keys)
            if _find_conflict(owners, allowed):  # a row that a held-out split did not need, or a question that it has
                if not row.shows and _find_conflict(owners, self.plan.allowed[row.origin.target]):
                    self._drop_repeated(row, allowed, next(iter(owners.values())))
                continue
            split = _name_split(owners) or self._find_emptiest(allowed, row)
            if not self._has_room(split, row):
                continue
            if near := self.spool.prints.find_near(row.keys):
                reason = (
                    f"its image is nearly image '{near.other[:_SHOWN]}' of split {near.split} ({near.bits} of 64 bits "
                    "differ); questions.near_duplicates is drop"
                )
                self._reject(row, reason, near.sha256)
                self.dropped += 1
                continue
            self.spool.own(split, row.keys)
            self._take(row, split)

    def _find_keys(self, row: SpooledRow, allowed: Sequence[Split]) -> list[str]:
        """Returns the keys whose owner a row joins.

        A question without an image that a split has which the row can't be in is reported, not rejected: short
        questions repeat by chance. Such rows stay together, too.
        """
        if row.shows or not _find_conflict(self.spool.find_owners(row.keys), allowed):
            return row.keys
        return [f"{row.keys[0]} {' '.join(allowed)}"]

    def _drop_repeated(self, row: SpooledRow, allowed: Sequence[Split], split: str) -> None:
        if self._has_room(self._find_emptiest(allowed, row), row):
            reason = f"its question is in split {split}, too; questions.near_duplicates is drop"
            self._reject(row, reason, "", "messages")
            self.dropped += 1

    def _iter_rows(self) -> Iterator[SpooledRow]:
        there = {target for _, target in self.spool.targets}
        for turn in _TURNS:
            if there.intersection(turn):
                yield from self.spool.iter_open(turn)

    def _reaches_limit(self, row: SpooledRow) -> bool:
        source = row.origin.source
        limit = self._questions.sources[source].limit if self._questions.sources else None
        return limit is not None and self._taken[source] >= limit

    def _get_quota(self, split: Split, row: SpooledRow) -> tuple[int | None, float]:
        """Returns which rows of a split are counted together with this one, and how many of them there may be."""
        wanted = self.plan.wanted[split]
        pool = None if None in wanted else row.origin.source
        return pool, wanted[pool]

    def _has_room(self, split: Split, row: SpooledRow) -> bool:
        pool, quota = self._get_quota(split, row)
        return self._placed[split, pool] < quota and not self._reaches_limit(row)

    def _find_emptiest(self, allowed: Sequence[Split], row: SpooledRow) -> Split:
        return min(allowed, key=lambda split: self._measure_need(split, row))

    def _measure_need(self, split: Split, row: SpooledRow) -> tuple[int, float]:
        """Returns a measure that is lowest for the emptiest split: those with a number before those with `all`."""
        pool, quota = self._get_quota(split, row)
        placed = self._placed[split, pool]
        if quota == math.inf:
            return 1, placed
        return (0 if placed < quota else 2), placed / quota if quota else math.inf

    def _take(self, row: SpooledRow, split: Split) -> None:
        if self._has_room(split, row):
            self._placed[split, None] += 1
            self._placed[split, row.origin.source] += 1
            self._taken[row.origin.source] += 1
            # outside of warm_start the answer is the reference, not a target
            self.spool.assign(row.number, split, with_target=split == "warm_start")

    def _reject(self, row: SpooledRow, reason: str, value: str, field: str = "images") -> None:
        self.spool.reject(row.number)
        self.rejected += 1
        origin = row.origin
        self._log.add(UnusableRow(origin.line, row.id, reason, origin.file, field, value), origin.source)


def _find_conflict(owners: Mapping[str, str], allowed: Sequence[str]) -> tuple[str, str] | None:
    """Returns why a row with images of these splits can be in none of the `allowed` ones, and the image at fault."""
    foreign = sorted((split, key) for key, split in owners.items() if split not in allowed)
    if foreign:
        split, key = foreign[0]
        return f"its image is in split {split}, too; the rows of {split} are kept", key
    if len(set(owners.values())) > 1:
        splits = sorted(set(owners.values()))
        return f"its images are in several splits: {', '.join(splits)}", min(owners)
    return None


def _name_split(owners: Mapping[str, str]) -> Split | None:
    """Returns the only split among the owners; None without an owner."""
    return next((split for split in get_args(Split) if split in owners.values()), None)

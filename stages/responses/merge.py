"""Merging adds answers from another store or an exported data set. Existing answers take precedence.

Answers are copied, not files: new segments get orders after all existing ones. No served answer changes, regardless of
the clocks and orders of the other store.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stages.responses.about import ABOUT
from stages.responses.refusals import REFUSAL_FOLDER
from stages.responses.segments import (
    ANSWER_SCHEMA,
    UnreadableSegment,
    decode_digests,
    decode_samples,
    publish,
    rechunk,
    write_segment,
)
from stages.responses.sets import Say, find_sets, read_served
from stages.responses.store import Store

MERGED_ROWS_PER_SEGMENT = 16_384  # held in memory at a time: 130 MB of the paper's longest answers

_Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class MergeResult:
    """The result of merging one set of the other store."""

    set_name: str
    added: int
    here_already: int  # answers whose key is already in this store, equal or not
    damaged: int  # unreadable segments of the other store


def merge(responses: Path, other: Path, say: Say, track: _Track = iter) -> Iterator[MergeResult]:
    """Copies answers of `other` (a store or an exported data set) missing from `responses`; yields results set by set.

    Raises FileNotFoundError when `other` holds no answers, ValueError when `other` is the same store.
    """
    for theirs in find_sets(other):
        ours = responses / theirs.name
        if ours.exists() and ours.samefile(theirs):
            raise ValueError(f"{other} is this store; give the folder of another one")
        yield _merge_set(ours, theirs, say, track)


def _merge_set(ours: Path, theirs: Path, say: Say, track: _Track) -> MergeResult:
    source, target = Store(theirs, say), Store(ours, say)
    added = 0
    for rows in rechunk(_read_lacking(source, target, track), MERGED_ROWS_PER_SEGMENT):
        publish(ours, lambda path, rows=rows: write_segment(path, rows))  # type: ignore[misc]
        added += rows.num_rows
    ours.mkdir(parents=True, exist_ok=True)
    if (theirs / ABOUT).is_file() and not (ours / ABOUT).exists():
        shutil.copy(theirs / ABOUT, ours / ABOUT)
    for file in (theirs / REFUSAL_FOLDER).glob("*.jsonl"):  # names are random, so files with equal names are equal
        (ours / REFUSAL_FOLDER).mkdir(exist_ok=True)
        shutil.copy(file, ours / REFUSAL_FOLDER / file.name)
    return MergeResult(theirs.name, added, len(source) - added, len(source.damaged))


def _read_lacking(source: Store, target: Store, track: _Track) -> Iterator[pa.Table]:
    for number in track(range(len(source.segments))):
        try:
            for table in read_served(source, number, ANSWER_SCHEMA.names):
                here = target.holds(decode_digests(table["request_key"]), decode_samples(table["sample"])[:, None])[
                    :, 0
                ]
                yield table.filter(pa.array(~here))
        except UnreadableSegment as error:
            source.skip(source.segments[number], error)

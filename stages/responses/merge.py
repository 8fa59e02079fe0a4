"""Merging adds answers from another store or an exported data set. Existing answers take precedence.

Answers are copied, not files: new segments get orders after all existing ones. No served answer changes, regardless of
the clocks and orders of the other store.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stages.job.bounded import Fault
from stages.responses.about import write_about
from stages.responses.refusals import read_refusals, write_refusals
from stages.responses.segment_rows import UnreadableSegment, decode_digests, decode_samples, rechunk, write_segment
from stages.responses.segments import publish
from stages.responses.sets import Say, choose_columns, find_foreign_row, find_sets, read_descriptions, read_served
from stages.responses.store import Store

_SET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
MERGED_ROWS_PER_SEGMENT = 16_384  # held in memory at a time: 130 MB of the paper's longest answers

_Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class MergeResult:
    """The result of merging one set of the other store."""

    set_name: str
    added: int
    here_already: int  # answers whose key is already in this store, equal or not
    damaged: int  # files of the other store that were passed over, as a whole or in part


def merge(responses: Path, other: Path, say: Say, track: _Track = iter) -> Iterator[MergeResult]:
    """Copies answers of `other` (a store or an exported data set) missing from `responses`; yields results set by set.

    Each row and each line is checked, and `say` gets what is passed over. No link is followed, no file is copied, and
    orders are not taken over. Raises FileNotFoundError when `other` holds no answers, ValueError when `other` is the
    same store.
    """
    for theirs in find_sets(other):
        ours = responses / theirs.name
        if ours.exists() and ours.samefile(theirs):
            raise ValueError(f"{other} is this store; give the folder of another one")
        if _SET_NAME.fullmatch(theirs.name):
            yield _merge_set(ours, theirs, say, track)
        else:
            say(str(Fault(theirs, "its name is not one of a set; it is passed over")))
            yield MergeResult(ascii(theirs.name), 0, 0, 1)


def _merge_set(ours: Path, theirs: Path, say: Say, track: _Track) -> MergeResult:
    source, target = Store(theirs, say), Store(ours, say)
    about, faults = read_descriptions(theirs)
    ours_about, _ = read_descriptions(ours)
    added = 0
    lacking = _read_lacking(source, target, ours_about or about, track)
    for rows in rechunk(lacking, MERGED_ROWS_PER_SEGMENT):
        publish(ours, lambda path, rows=rows: write_segment(path, rows))  # type: ignore[misc]
        added += rows.num_rows
    for fault in faults:
        say(str(fault))
    if about:
        write_about(ours, about)
    known, refused = read_refusals(ours)[0], read_refusals(theirs)[0]
    write_refusals(ours, {key: reason for key, reason in refused.items() if key not in known})
    return MergeResult(theirs.name, added, len(source) - added, len(source.damaged) + len(faults))


def _read_lacking(source: Store, target: Store, about: Mapping[str, object], track: _Track) -> Iterator[pa.Table]:
    columns = choose_columns(source.segments)
    for number in track(range(len(source.segments))):
        try:
            for table in read_served(source, number, columns):
                if wrong := find_foreign_row(table, about):
                    raise UnreadableSegment(wrong[1])
                here = target.holds(decode_digests(table["request_key"]), decode_samples(table["sample"])[:, None])[
                    :, 0
                ]
                yield table.filter(pa.array(~here))
        except UnreadableSegment as error:
            source.skip(source.segments[number], error)

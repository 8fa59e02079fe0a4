"""Compaction: many small segments become few large ones, while others read and write, and no answer changes.

Only answers that are served are copied, to the place of the first segment that they come from; whatever stays or is
added meanwhile comes after it or holds other keys. New segments are complete and visible before old ones go, so a crash
in between leaves answers twice and equal, and the next compaction ends it. Damaged segments stay where they are, and
nothing moves past them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.job.files import sync_folder
from stages.responses.segments import (
    ANSWER_SCHEMA,
    UnreadableSegment,
    open_scratch,
    parse_segment,
    publish_for,
    write_files,
)
from stages.responses.sets import Say, list_files, read_served, read_tables
from stages.responses.store import Store

ROWS_PER_SEGMENT = 65_536
_LEFTOVER_SECONDS = 86_400  # an unfinished file that is older belongs to a writer that was killed

_Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class CompactionResult:
    """What became of one set."""

    before: int  # segments
    after: int
    answers: int
    duplicates: int  # answers that were never served and are gone
    leftovers: int  # unfinished files of killed writers that are gone


def compact(folder: Path, say: Say, track: _Track = iter) -> CompactionResult:
    """Compacts one set; `track` goes round the numbers of the segments that are read.

    Raises FileNotFoundError when another compaction of the same set was faster; then nothing was changed here.
    """
    store = Store(folder, say)
    while True:
        try:
            return _compact_segments(store, track)
        except _Damaged as damage:
            store.skip(store.segments[damage.number], damage.error)
            store.refresh()


class _Damaged(Exception):
    def __init__(self, number: int, error: UnreadableSegment) -> None:
        self.number, self.error = number, error


def _compact_segments(store: Store, track: _Track) -> CompactionResult:
    rows = np.array([pq.read_metadata(segment.path).num_rows for segment in store.segments], np.int64)
    kept = store.index.count_served(len(store.segments))
    duplicates = int((rows - kept).sum())
    chosen = np.flatnonzero((rows < ROWS_PER_SEGMENT // 2) | (kept < rows)).tolist()
    before = len(store.segments)
    if len(chosen) < 2 and not duplicates:
        return CompactionResult(before, before, len(store), 0, _sweep(store.folder))
    if duplicates:  # what is dropped must be readable elsewhere
        for number in sorted(set(range(before)) - set(chosen)):
            for _ in _raise_damaged(number, read_tables(store.segments[number], ANSWER_SCHEMA.names)):
                pass
    with ExitStack() as stack:
        written = [
            ([store.segments[number] for number in numbers], file)
            for numbers in _split_runs(store, chosen)
            for file in write_files(
                _read_served(store, track(numbers)),
                ROWS_PER_SEGMENT,
                lambda: stack.enter_context(open_scratch(store.folder)),
            )
        ]
        made = [publish_for(store.folder, file, replaced) for replaced, file in written]
    for number in reversed(chosen):
        store.segments[number].path.unlink(missing_ok=True)
    sync_folder(store.folder)
    return CompactionResult(before, before - len(chosen) + len(made), len(store), duplicates, _sweep(store.folder))


def _split_runs(store: Store, chosen: list[int]) -> list[list[int]]:
    """The numbers of `chosen` that go to one place: damaged segments divide them."""
    walls = sorted(parse_segment(path).precedence for path in store.damaged)
    runs: dict[int, list[int]] = {}
    for number in chosen:
        precedence = store.segments[number].precedence
        runs.setdefault(sum(wall < precedence for wall in walls), []).append(number)
    return list(runs.values())


def _read_served(store: Store, numbers: Iterable[int]) -> Iterator[pa.Table]:
    for number in numbers:
        yield from _raise_damaged(number, read_served(store, number, ANSWER_SCHEMA.names))


def _raise_damaged(number: int, found: Iterator[pa.Table]) -> Iterator[pa.Table]:
    try:
        yield from found
    except UnreadableSegment as error:
        raise _Damaged(number, error) from error


def _sweep(folder: Path) -> int:
    """Removes unfinished files of writers that were killed more than a day ago."""
    now = time.time()
    old = [
        path
        for path, _, written in list_files(folder)
        if path.name.endswith(".partial") and now - written > _LEFTOVER_SECONDS
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)

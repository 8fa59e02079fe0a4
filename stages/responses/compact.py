"""Compaction merges many small segments into few large ones, while others read and write; no answer changes.

Only served answers are copied, to the position of the first segment that they come from; segments that remain or are
added meanwhile come later in the order or hold other keys. New segments are complete and visible before old ones are
removed. A crash in between leaves duplicate, equal answers, which the next compaction removes. Damaged segments keep
their position, and no answer moves across them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.job.files import sync_folder
from stages.responses.segment_rows import UnreadableSegment, open_segment, write_files
from stages.responses.segments import open_scratch, parse_segment, publish_for
from stages.responses.sets import Say, choose_columns, list_files, read_served, read_tables
from stages.responses.store import Store

ROWS_PER_SEGMENT = 65_536
_LEFTOVER_SECONDS = 86_400  # seconds; an older unfinished file belongs to a killed writer

_Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class CompactionResult:
    """The result of compacting one set."""

    before: int  # segments
    after: int
    answers: int
    duplicates: int  # removed answers that were never served
    leftovers: int  # removed unfinished files of killed writers


def compact(folder: Path, say: Say, track: _Track = iter) -> CompactionResult:
    """Compacts one set; `track` wraps the iterator over the numbers of the segments that are read.

    Raises FileNotFoundError if another compaction of the same set finished first; in that case nothing is changed.
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
    rows = np.array([open_segment(segment.path).metadata.num_rows for segment in store.segments], np.int64)
    kept = store.index.count_served(len(store.segments))
    duplicates = int((rows - kept).sum())
    chosen = np.flatnonzero((rows < ROWS_PER_SEGMENT // 2) | (kept < rows)).tolist()
    before = len(store.segments)
    if len(chosen) < 2 and not duplicates:
        return CompactionResult(before, before, len(store), 0, _sweep(store.folder))
    columns = choose_columns(store.segments)
    if duplicates:  # dropped answers must be readable in another segment
        for number in sorted(set(range(before)) - set(chosen)):
            for _ in _raise_damaged(number, read_tables(store.segments[number], columns)):
                pass
    with ExitStack() as stack:
        written = [
            ([store.segments[number] for number in numbers], file)
            for numbers in _split_runs(store, chosen)
            for file in write_files(
                _read_served(store, track(numbers), columns),
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
    """Splits `chosen` into the runs that move together; damaged segments separate them."""
    walls = sorted(parse_segment(path).precedence for path in store.damaged)
    runs: dict[int, list[int]] = {}
    for number in chosen:
        precedence = store.segments[number].precedence
        runs.setdefault(sum(wall < precedence for wall in walls), []).append(number)
    return list(runs.values())


def _read_served(store: Store, numbers: Iterable[int], columns: list[str]) -> Iterator[pa.Table]:
    for number in numbers:
        yield from _raise_damaged(number, read_served(store, number, columns))


def _raise_damaged(number: int, found: Iterator[pa.Table]) -> Iterator[pa.Table]:
    try:
        yield from found
    except UnreadableSegment as error:
        raise _Damaged(number, error) from error


def _sweep(folder: Path) -> int:
    """Removes unfinished files of writers that were killed more than a day ago, by the clock of the file system."""
    with open_scratch(folder) as probe:
        probe.touch()
        now = probe.stat().st_mtime
        old = [
            path
            for path, _, written in list_files(folder)
            if path.name.endswith(".partial") and abs(now - written) > _LEFTOVER_SECONDS
        ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)

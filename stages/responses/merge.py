"""Merging: answers of another store, or of an exported data set, that this one lacks. What was here already wins.

Answers are copied, not files: the new segments get orders after all that is here, so that no answer that was served
changes, whatever the other store's clocks and orders were.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stages.responses.about import ABOUT
from stages.responses.refusals import FOLDER
from stages.responses.segments import SCHEMA, Unreadable, digests_of, publish, rechunked, samples_of, write_segment
from stages.responses.sets import Say, served, sets_in
from stages.responses.store import Store

ROWS_PER_SEGMENT = 16_384  # held in memory at a time: 130 MB of the paper's longest answers

Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Merged:
    """What became of one set of the other store."""

    set_name: str
    added: int
    here_already: int  # answers with a key that this store has, equal or not
    damaged: int  # segments of the other store that could not be read


def merge(responses: Path, other: Path, say: Say, track: Track = iter) -> Iterator[Merged]:
    """Copies what `other` (a store or an exported data set) has and the store in `responses` lacks; yields set by set.

    Raises FileNotFoundError when `other` holds no answers, ValueError when it is this very store.
    """
    for theirs in sets_in(other):
        ours = responses / theirs.name
        if ours.exists() and ours.samefile(theirs):
            raise ValueError(f"{other} is this store; give the folder of another one")
        yield _merged(ours, theirs, say, track)


def _merged(ours: Path, theirs: Path, say: Say, track: Track) -> Merged:
    source, target = Store(theirs, say), Store(ours, say)
    added = 0
    for rows in rechunked(_lacking(source, target, track), ROWS_PER_SEGMENT):
        publish(ours, lambda path, rows=rows: write_segment(path, rows))  # type: ignore[misc]
        added += rows.num_rows
    ours.mkdir(parents=True, exist_ok=True)
    if (theirs / ABOUT).is_file() and not (ours / ABOUT).exists():
        shutil.copy(theirs / ABOUT, ours / ABOUT)
    for file in (theirs / FOLDER).glob("*.jsonl"):  # names are random: equal names are equal files
        (ours / FOLDER).mkdir(exist_ok=True)
        shutil.copy(file, ours / FOLDER / file.name)
    return Merged(theirs.name, added, len(source) - added, len(source.damaged))


def _lacking(source: Store, target: Store, track: Track) -> Iterator[pa.Table]:
    for number in track(range(len(source.segments))):
        try:
            for table in served(source, number, SCHEMA.names):
                here = target.holds(digests_of(table["request_key"]), samples_of(table["sample"])[:, None])[:, 0]
                yield table.filter(pa.array(~here))
        except Unreadable as error:
            source.skip(source.segments[number], error)

"""The answers in one folder: found by key, read when they are asked for, added as new segments by many processes at
once.

Whoever reads gets the same answer for a key, for ever: `stages.responses.segments` says in which order segments count.
What cannot be read is named and passed over, never deleted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.responses.index import ABSENT, Index, Runs, decode_rows, decode_segments
from stages.responses.segments import (
    ANSWER_SCHEMA,
    Segment,
    UnreadableSegment,
    decode_digests,
    decode_samples,
    list_segments,
    open_segment,
    publish,
    read_groups,
    write_segment,
)

SERVED = [name for name in ANSWER_SCHEMA.names if name != "created_at"]


@dataclass(frozen=True)
class StoredAnswer:
    """One answer as it is served."""

    key: str
    request_key: str
    sample: int
    question_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    engine: str
    engine_version: str
    model: str = ""
    revision: str = ""
    seconds: float = 0.0
    request: str = ""


class Store:
    """The answers in one folder. What was asked is held in memory (32 bytes a request), answers are read when
    wanted.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Reads what all segments answer; `say` is told about each that cannot be read."""
        self.folder = folder
        self._say = say
        self.damaged: dict[Path, str] = {}
        self.refresh()

    @property
    def index(self) -> Index:
        """Where each answer lies, what this object appended included."""
        if self._stale:
            self.refresh()
        return self._index

    def __len__(self) -> int:
        return len(self.index)

    def refresh(self) -> None:
        """Reads what is in the folder now: other writers' segments, and those of a compaction, included."""
        self._stale = False
        self.segments: list[Segment] = []
        self._index = Index([])  # the old one goes before the new one is built: never two in memory
        while True:
            segments = [segment for segment in list_segments(self.folder) if segment.path not in self.damaged]
            try:
                pairs = [(segment, runs) for segment in segments if (runs := self._read_runs(segment)) is not None]
            except FileNotFoundError:
                continue  # a compaction put another segment in its place
            self.segments = [segment for segment, _ in pairs]
            self._index = Index([runs for _, runs in pairs])
            return

    def _read_runs(self, segment: Segment) -> Runs | None:
        try:
            file = open_segment(segment.path)
            table = read_groups(file, list(range(file.metadata.num_row_groups)), ["request_key", "sample"])
            return Runs.from_rows(decode_digests(table["request_key"]), decode_samples(table["sample"]))
        except UnreadableSegment as error:
            self.skip(segment, error)
            return None

    def skip(self, segment: Segment, error: UnreadableSegment) -> None:
        """Names a segment that is damaged; its answers count as not there until the store is opened again."""
        self.damaged[segment.path] = str(error)
        self._say(f"{segment.path} cannot be read and is passed over; its answers count as missing ({error})")

    def holds(self, requests: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Which answers are stored: a row a request (see `decode_digests`), in it those of `samples`."""
        return self.index.find_places(requests, samples) != ABSENT

    def read_rows(
        self, requests: np.ndarray, samples: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """`columns` of the stored ones among these answers, in their order, and which of them are stored.

        Reads the row groups that hold them and no other column. A segment that turns out to be damaged is named, and
              counts
        as not there.
        """
        while True:
            places = self.index.find_places(requests, samples)
            there = places != ABSENT
            try:
                return self._take_rows(places[there], list(columns)), there
            except FileNotFoundError:
                self.refresh()

    def _take_rows(self, places: np.ndarray, columns: list[str]) -> pa.Table:
        numbers = decode_segments(places)
        order = np.argsort(numbers, kind="stable")
        ends = np.flatnonzero(np.diff(numbers[order])) + 1
        parts = []
        for members in np.split(order, ends) if len(places) else []:
            segment = self.segments[int(numbers[members[0]])]
            try:
                parts.append(_read_segment_rows(open_segment(segment.path), decode_rows(places[members]), columns))
            except UnreadableSegment as error:
                self.skip(segment, error)
                raise FileNotFoundError(segment.path) from error
        schema = pa.schema([ANSWER_SCHEMA.field(name) for name in columns])
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        if (inverse == np.arange(len(order))).all():
            return table.combine_chunks()
        return table.combine_chunks().take(pa.array(inverse))

    def fetch(self, wanted: Iterable[tuple[str, int]]) -> dict[str, StoredAnswer]:
        """The stored ones among the answers (request key, sample), whole, by their keys."""
        pairs = list(dict.fromkeys(wanted))
        if not pairs:
            return {}
        requests = decode_digests(pa.array([request for request, _ in pairs]))
        table, _ = self.read_rows(requests, np.array([[sample] for _, sample in pairs]), SERVED)
        return {answer.key: answer for answer in parse_answers(table)}

    def append(self, answers: Sequence[StoredAnswer]) -> None:
        """Writes `answers` as one new segment; when this returns they are on disk, and none of them can be lost.

        Raises OSError when they can't be written.
        """
        if answers:
            publish(self.folder, lambda path: write_segment(path, make_answer_table(answers, time.time_ns())))
            self._stale = True


def make_answer_table(answers: Sequence[StoredAnswer], created_at: int) -> pa.Table:
    """Answers as a table with SCHEMA."""
    return pa.Table.from_pylist(
        [{**asdict(answer), "created_at": created_at} for answer in answers], schema=ANSWER_SCHEMA
    )


def parse_answers(table: pa.Table) -> Iterator[StoredAnswer]:
    """The rows of a table with the columns SERVED as answers; what an older segment did not say is empty."""
    for values in table.to_pylist():
        values["token_ids"] = tuple(values["token_ids"])
        yield StoredAnswer(**{name: value for name, value in values.items() if value is not None})


def _read_segment_rows(file: pq.ParquetFile, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """`columns` of the given rows of one file, reading only the row groups in which they lie."""
    counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    ends = np.cumsum(counts)
    groups, inverse = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
    table = read_groups(file, [int(group) for group in groups], columns)
    read = np.array(counts)[groups]
    starts = np.concatenate([[0], np.cumsum(read)[:-1]])  # of each group in `table`
    inside = rows - (ends[groups] - read)[inverse] + starts[inverse]
    if len(inside) == table.num_rows and (inside == np.arange(table.num_rows)).all():
        return table
    if table.num_rows and (np.diff(inside) == 1).all():
        return table.slice(int(inside[0]), len(inside))
    return table.take(pa.array(inside))

"""The answers in one folder: looked up by key, read on demand, appended as new segments by many processes concurrently.

All readers get the same answer for a key, permanently: `stages.responses.segments` defines the order of segments.
Unreadable segments are reported and skipped, never deleted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.job.bounded import replace_surrogates, show_path
from stages.responses.index import ABSENT, Index, Runs, decode_rows, decode_segments
from stages.responses.segment_rows import (
    ANSWER_SCHEMA,
    FULL_SCHEMA,
    UnreadableSegment,
    decode_digests,
    decode_samples,
    open_segment,
    read_groups,
    write_segment,
)
from stages.responses.segments import Segment, list_segments, publish

_LARGEST = 2**31 - 1
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
    """The answers in one folder.

    The index of requests is in memory (32 bytes per request); answers are read on demand.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Reads the index of all segments; `say` receives a message for each segment that cannot be read."""
        self.folder = folder
        self._say = say
        self.damaged: dict[Path, str] = {}
        self.refresh()

    @property
    def index(self) -> Index:
        """Location of each answer, including answers appended through this object."""
        if self._stale:
            self.refresh()
        return self._index

    def __len__(self) -> int:
        return len(self.index)

    def refresh(self) -> None:
        """Reads the folder's current state, including segments of other writers and of a compaction."""
        self._stale = False
        self.segments: list[Segment] = []
        self._index = Index([])  # frees the old index before the new one is built
        while True:
            segments = [segment for segment in list_segments(self.folder) if segment.path not in self.damaged]
            try:
                pairs = [(segment, runs) for segment in segments if (runs := self._read_runs(segment)) is not None]
            except FileNotFoundError:
                continue  # a compaction replaced the segment
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
        """Reports a damaged segment; its answers count as missing until the store is opened again."""
        self.damaged[segment.path] = str(error)
        self._say(
            f"{show_path(segment.path)} is passed over and its answers count as missing: {error}; move the file away, "
            "or put a whole copy in its place (`ril store verify` lists all such files)"
        )

    def holds(self, requests: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Returns which answers are stored: one row per request (see `decode_digests`), one column per sample."""
        return self.index.find_places(requests, samples) != ABSENT

    def read_rows(
        self, requests: np.ndarray, samples: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """Returns `columns` of the stored ones among these answers, in the given order, and which answers are stored.

        Reads only these columns of the row groups that hold them. A segment that turns out to be damaged is reported
        and its answers count as missing.
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
        schema = pa.schema([FULL_SCHEMA.field(name) for name in columns])
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        if (inverse == np.arange(len(order))).all():
            return table.combine_chunks()
        return table.combine_chunks().take(pa.array(inverse))

    def fetch(self, wanted: Iterable[tuple[str, int]]) -> dict[str, StoredAnswer]:
        """Returns complete stored answers among the (request key, sample) pairs, by answer key."""
        pairs = list(dict.fromkeys(wanted))
        if not pairs:
            return {}
        requests = decode_digests(pa.array([request for request, _ in pairs]))
        table, _ = self.read_rows(requests, np.array([[sample] for _, sample in pairs]), SERVED)
        return {answer.key: answer for answer in parse_answers(table)}

    def append(self, answers: Sequence[StoredAnswer]) -> None:
        """Writes `answers` as one new segment; on return they are durable on disk.

        Raises OSError when they cannot be written.
        """
        if answers:
            publish(self.folder, lambda path: write_segment(path, make_answer_table(answers, time.time_ns())))
            self._stale = True


def make_answer_table(answers: Sequence[StoredAnswer], created_at: int) -> pa.Table:
    """Returns answers as a table with ANSWER_SCHEMA, or with FULL_SCHEMA if a text is not valid Unicode.

    What was paid for is stored whatever it contains: counts and token ids that no model has, as an endpoint may reply,
    are brought into range.
    """
    rows = [_make_row(answer, created_at) for answer in answers]
    schema = FULL_SCHEMA if any(row["original_text"] is not None for row in rows) else ANSWER_SCHEMA
    return pa.Table.from_pylist(rows, schema=schema)


def _make_row(answer: StoredAnswer, created_at: int) -> dict[str, Any]:
    values = asdict(answer)
    row = {name: replace_surrogates(value) if isinstance(value, str) else value for name, value in values.items()}
    for name in ("prompt_tokens", "completion_tokens"):
        row[name] = min(max(row[name], 0), _LARGEST)
    if any(not 0 <= token <= _LARGEST for token in answer.token_ids):
        row["token_ids"] = ()
    original = answer.text.encode("utf-8", "surrogatepass") if row["text"] != answer.text else None
    return {**row, "created_at": created_at, "original_text": original}


def parse_answers(table: pa.Table) -> Iterator[StoredAnswer]:
    """Yields the rows of a table with the columns SERVED; values missing from older segments keep their default."""
    for values in table.to_pylist():
        values["token_ids"] = tuple(values["token_ids"])
        yield StoredAnswer(**{name: value for name, value in values.items() if value is not None})


def _read_segment_rows(file: pq.ParquetFile, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Returns `columns` of the given rows of one file; reads only the row groups that hold them, one after another."""
    counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    ends = np.cumsum(counts)
    of_group = np.searchsorted(ends, rows, side="right")
    order = np.argsort(of_group, kind="stable")
    parts = []
    for members in np.split(order, np.flatnonzero(np.diff(of_group[order])) + 1):
        group = int(of_group[members[0]])
        table = read_groups(file, [group], columns)
        inside = rows[members] - (ends[group] - counts[group])
        whole = len(inside) == counts[group] and (np.diff(inside) == 1).all()
        parts.append(table if whole else table.take(pa.array(inside)))  # a slice would keep the group in memory
    table = pa.concat_tables(parts)
    if (np.diff(order) == 1).all():
        return table
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return table.combine_chunks().take(pa.array(inverse))

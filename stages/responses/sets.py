"""Sets: the folders of a store, one per model and settings; their statistics and integrity."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.job.hashes import hash_json
from stages.responses.about import read_about
from stages.responses.key import derive_answer_key
from stages.responses.refusals import read_refusals
from stages.responses.segments import (
    ANSWER_SCHEMA,
    Segment,
    UnreadableSegment,
    decode_digests,
    decode_samples,
    list_segments,
    open_segment,
    read_groups,
)
from stages.responses.store import Store

Say = Callable[[str], None]


def find_sets(root: Path) -> list[Path]:
    """Returns the folders with segments in a store, in its `responses` folder, or in an exported data set.

    Raises FileNotFoundError when there is none.
    """
    inside = root / "responses" if (root / "responses").is_dir() else root
    found = (
        [folder for folder in sorted(inside.iterdir()) if folder.is_dir() and list_segments(folder)]
        if inside.is_dir()
        else []
    )
    if not found:
        raise FileNotFoundError(
            f"{root} holds no stored answers; give the folder of a store (RIL_STORE) or of an exported set"
        )
    return found


def list_files(folder: Path) -> list[tuple[Path, int, float]]:
    """Returns (path, bytes, modification time) of the files in a folder; skips files that vanish meanwhile."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((path, stat.st_size, stat.st_mtime))
    return found


def read_tables(segment: Segment, columns: list[str]) -> Iterator[pa.Table]:
    """Yields `columns` of one segment, one row group at a time. Raises UnreadableSegment on damage."""
    file = open_segment(segment.path)
    for group in range(file.metadata.num_row_groups):
        yield read_groups(file, [group], columns)


def read_served(store: Store, number: int, columns: list[str]) -> Iterator[pa.Table]:
    """Yields `columns` of the served answers in segment `number`, without duplicates of earlier answers."""
    start = 0
    wanted = list(dict.fromkeys(["request_key", "sample", *columns]))
    for table in read_tables(store.segments[number], wanted):
        keep = store.index.find_winners(
            number, decode_digests(table["request_key"]), decode_samples(table["sample"]), start
        )
        start += table.num_rows
        yield table.filter(pa.array(keep)).select(columns)


@dataclass
class SetStatistics:
    """Sums over the served answers of one set."""

    folder: Path
    segments: int = 0
    damaged: int = 0
    duplicates: int = 0
    index_bytes: int = 0
    disk_bytes: int = 0
    leftovers: int = 0  # unfinished files of killed writers
    refused: int = 0
    answers: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    engines: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    first_at: int = 0  # nanoseconds since 1970, by the writers' clocks
    last_at: int = 0

    @property
    def truncated_share(self) -> float:
        """Share of answers truncated at max_tokens or at the end of the context."""
        return self.cut / max(self.answers, 1)


_COUNTED = [
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "engine",
    "engine_version",
    "created_at",
    "model",
    "revision",
    "seconds",
]


def compute_set_statistics(
    folder: Path, say: Say, track: Callable[[Iterable[int]], Iterable[int]] = iter
) -> SetStatistics:
    """Returns the counts of one set without reading texts. `track` wraps the iterator over its segments."""
    store = Store(folder, say)
    files = list_files(folder)
    found = SetStatistics(
        folder=folder,
        segments=len(store.segments),
        damaged=len(store.damaged),
        duplicates=store.index.stored - len(store.index),
        index_bytes=store.index.nbytes,
        disk_bytes=sum(length for _, length, _ in files),
        leftovers=sum(file.name.endswith(".partial") for file, _, _ in files),
        refused=len(read_refusals(folder)),
    )
    for number in track(range(len(store.segments))):
        try:
            for table in read_served(store, number, _COUNTED):
                _count(found, table)
        except UnreadableSegment as error:
            store.skip(store.segments[number], error)
            found.damaged += 1
    return found


def _count(found: SetStatistics, table: pa.Table) -> None:
    if not table.num_rows:
        return
    found.answers += table.num_rows
    found.cut += pc.sum(pc.equal(table["finish_reason"], "length")).as_py()
    found.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py()
    found.completion_tokens += pc.sum(table["completion_tokens"]).as_py()
    found.seconds += pc.sum(table["seconds"]).as_py() or 0.0
    times = pc.min_max(table["created_at"]).as_py()
    found.first_at = min(found.first_at or times["min"], times["min"])
    found.last_at = max(found.last_at, times["max"])
    for counter, columns in ((found.engines, ("engine", "engine_version")), (found.models, ("model", "revision"))):
        for row in table.group_by(list(columns)).aggregate([([], "count_all")]).to_pylist():
            counter[" ".join(str(row[column] or "?") for column in columns)] += row["count_all"]


@dataclass(frozen=True)
class Fault:
    """A difference between the store and what was written."""

    path: Path
    reason: str


def find_faults(folder: Path) -> Iterator[Fault | int]:
    """Reads every byte of a set; yields each fault, and the number of answers of each segment that was read completely.

    Checks the checksums of pages, and that each key is the hash of the values stored with it.
    """
    asked = read_about(folder).get("asked_sha256")
    for segment in list_segments(folder):
        try:
            rows = 0
            for table in read_tables(segment, ANSWER_SCHEMA.names):
                rows += table.num_rows
                wrong = _find_wrong_keys(table, asked)
                if wrong:
                    yield Fault(
                        segment.path, f"{len(wrong)} keys are not the hash of their request, such as {wrong[0]}"
                    )
            yield rows
        except UnreadableSegment as error:
            yield Fault(segment.path, str(error))


def _find_wrong_keys(table: pa.Table, asked: str | None) -> list[str]:
    wrong = []
    columns: list[list[Any]] = [table[name].to_pylist() for name in ("key", "request_key", "sample", "request")]
    for key, request_key, sample, request in zip(*columns, strict=True):
        if key != derive_answer_key(request_key, sample) or (
            asked and request and request_key != _derive_request_key(asked, request)
        ):
            wrong.append(key)
    return wrong


def _derive_request_key(asked: str, request: str) -> str:
    return hash_json({"asked": asked, **json.loads(request)})

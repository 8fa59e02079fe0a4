"""Sets: the folders of a store, one per model and settings; their statistics and integrity."""

import contextlib
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from stages.job.bounded import Fault, UnusableFile, describe_kind, show_value
from stages.job.hashes import hash_json
from stages.responses.about import ABOUT, REMEDY, read_about
from stages.responses.key import parse_request
from stages.responses.refusals import REFUSAL_FOLDER, read_refusals
from stages.responses.segment_rows import (
    ANSWER_SCHEMA,
    FULL_SCHEMA,
    ORIGINAL,
    UnreadableSegment,
    decode_digests,
    decode_samples,
    open_segment,
    read_groups,
)
from stages.responses.segments import Segment, list_segments
from stages.responses.store import Store

if TYPE_CHECKING:
    from stages.vlm.checkpoint import Checkpoint

Say = Callable[[str], None]


def find_sets(root: Path) -> list[Path]:
    """Returns the folders with segments in a store, in its `responses` folder, or in an exported data set.

    Links to folders are passed over (`find_strays` names them). Raises FileNotFoundError when there is none.
    """
    inside = _find_inside(root)
    found = (
        [folder for folder in sorted(inside.iterdir()) if _is_own_folder(folder) and list_segments(folder)]
        if inside.is_dir()
        else []
    )
    if not found:
        raise FileNotFoundError(
            f"{root} holds no stored answers; give the folder of a store (RIL_STORE) or of an exported set"
        )
    return found


def find_strays(folder: Path) -> Iterator[Fault]:
    """Yields what no writer puts into the folder of a set or of all sets: links, pipes, sockets, devices."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and path.name != ABOUT and path.suffix != ".parquet":
                yield Fault(path, f"it is {describe_kind(mode)} and is passed over; move it away")


def _find_inside(root: Path) -> Path:
    return root / "responses" if (root / "responses").is_dir() else root


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def list_files(folder: Path) -> list[tuple[Path, int, float]]:
    """Returns (path, bytes, modification time) of the files in a folder; skips files that vanish meanwhile."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            found.append((path, status.st_size, status.st_mtime))
    return found


def read_tables(segment: Segment, columns: list[str]) -> Iterator[pa.Table]:
    """Yields `columns` of one segment, one row group at a time. Raises UnreadableSegment on damage."""
    file = open_segment(segment.path)
    for group in range(file.metadata.num_row_groups):
        yield read_groups(file, [group], columns)


def choose_columns(segments: Iterable[Segment]) -> list[str]:
    """Returns the columns of complete rows of these segments: `original_text` only if one of them has it."""
    for segment in segments:
        with contextlib.suppress(UnreadableSegment, FileNotFoundError):  # whoever reads its rows says that
            if ORIGINAL.name in open_segment(segment.path).schema_arrow.names:
                return FULL_SCHEMA.names
    return ANSWER_SCHEMA.names


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


def find_served_model(store: Store, checkpoint: "Checkpoint") -> str:
    """Returns the name by which the endpoint answered first in this set; empty for other models, and if it gave none.

    An alias such as `gpt-4o` stays while the model behind it changes, and its answers name the dated model.
    """
    if checkpoint.endpoint is None:
        return ""
    asked = f"{checkpoint.endpoint.provider}/{checkpoint.endpoint.name}"
    for segment in list(store.segments):
        with contextlib.suppress(FileNotFoundError):
            try:
                for table in read_tables(segment, ["engine_version"]):
                    for version in table["engine_version"].unique().to_pylist():
                        if version != asked and version.startswith(f"{checkpoint.endpoint.provider}/"):
                            return str(version).removeprefix(f"{checkpoint.endpoint.provider}/")
            except UnreadableSegment as error:
                store.skip(segment, error)
    return ""


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
    refused, faults = read_refusals(folder)
    for fault in faults:
        say(str(fault))
    found = SetStatistics(
        folder=folder,
        segments=len(store.segments),
        damaged=len(store.damaged),
        duplicates=store.index.stored - len(store.index),
        index_bytes=store.index.nbytes,
        disk_bytes=sum(length for _, length, _ in files),
        leftovers=sum(file.name.endswith(".partial") for file, _, _ in files),
        refused=len(refused),
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


def find_faults(folder: Path) -> Iterator[Fault | int]:
    """Reads every byte of a set; yields each fault, and the number of answers of each segment that was read completely.

    Checks the checksums of pages, each value (`segment_rows.find_wrong_row`), that each key is the hash of the values
    stored with it, that all rows are of the model in about.json, and the lines of refusals.
    """
    yield from find_strays(folder)
    if (folder / REFUSAL_FOLDER).is_dir() and not (folder / REFUSAL_FOLDER).is_symlink():
        yield from find_strays(folder / REFUSAL_FOLDER)
    about, faults = read_descriptions(folder)
    yield from faults
    for segment in list_segments(folder):
        try:
            start = 0
            for table in read_tables(segment, FULL_SCHEMA.names):
                if wrong := find_foreign_row(table, about):
                    yield Fault(segment.path, f"row {start + wrong[0]}: {wrong[1]}; {_REMEDY}")
                start += table.num_rows
            yield start
        except UnreadableSegment as error:
            yield Fault(segment.path, f"{error}; {_REMEDY}")


_REMEDY = "move the file away, or put a whole copy in its place"


def read_descriptions(folder: Path) -> tuple[dict[str, object], list[Fault]]:
    """Returns the content of about.json, empty if it is not usable, and the faults of it and of the refusals."""
    _, faults = read_refusals(folder)
    try:
        return read_about(folder), faults
    except UnusableFile as error:
        return {}, [Fault(folder / ABOUT, f"{error}; {REMEDY}"), *faults]


def find_foreign_row(table: pa.Table, about: Mapping[str, object]) -> tuple[int, str] | None:
    """Returns index and fault of the first row that is not of the model and settings in about.json; None if all are."""
    asked, revision = about.get("asked_sha256"), about.get("revision")
    columns = [table[name].to_pylist() for name in ("request_key", "request", "revision")]
    for row, (key, request, of_row) in enumerate(zip(*columns, strict=True)):
        if asked and request and key != hash_json({"asked": asked, **parse_request(request)}):
            return row, f"request_key is {key}, which is not the hash of the request and of asked_sha256 in {ABOUT}"
        if revision and about.get("model") and of_row and of_row != revision:
            return row, f"revision is {show_value(of_row)}, another model than {show_value(revision)} in {ABOUT}"
    return None

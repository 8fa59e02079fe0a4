"""Canonical rows of questions: one parquet schema for all sources, readable by plain `datasets`."""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpora.markers import IMAGE_MARKER
from stages.job.files import read_shards, reading_parquet

MOST_IMAGES = 1000  # of one question
MOST_IMAGE_BYTES = 2**28  # of all images of one question; a photo has 5 MB
MOST_NAME_CHARACTERS = 1000  # of an id, a source, a kind
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the storage type of an Image column in `datasets`
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
IMITATION_SPLITS = ("imitation", "warm_start")  # RIL's questions are of one of these (`selection.split`)
QUESTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(IMAGE)),
        (
            "messages",
            pa.list_(MESSAGE),
        ),  # texts contain `<image>` markers; a turn after the last user turn is the target
        ("answer", pa.string()),  # reference for judge and scorers; null if there is none
        ("source", pa.string()),
        ("kind", pa.string()),
        ("image_sha256", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Question:
    """One question as stages use it."""

    id: str
    images: tuple[bytes, ...]
    image_sha256: tuple[str, ...]
    messages: tuple[dict[str, str], ...]  # ends with the user's turn
    target: str | None  # the target answer in `warm_start`
    answer: str
    source: str
    kind: str

    @property
    def text(self) -> str:
        """The user's last turn without image markers."""
        return self.messages[-1]["content"].replace(IMAGE_MARKER, "").strip()


def make_canonical_row(
    question_id: str,
    images: list[bytes],
    messages: list[dict[str, str]],
    answer: str | None,
    source: str,
    kind: str,
) -> dict[str, Any]:
    """Returns a row of QUESTION_SCHEMA; the bytes of the images are unchanged."""
    return {
        "id": question_id,
        "images": [{"bytes": image, "path": None} for image in images],
        "messages": messages,
        "answer": answer,
        "source": source,
        "kind": kind,
        "image_sha256": [hashlib.sha256(image).hexdigest() for image in images],
    }


def make_question(row: Mapping[str, Any]) -> Question:
    """Returns a canonical row as a Question; a last turn by the assistant becomes `target`."""
    messages, target = split_target(row["messages"])
    return Question(
        id=row["id"],
        images=tuple(image["bytes"] for image in row["images"]),
        image_sha256=tuple(row["image_sha256"]),
        messages=tuple(messages),
        target=target,
        answer=row["answer"] or "",
        source=row["source"],
        kind=row["kind"],
    )


def split_target(said: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], str | None]:
    """Returns the turns up to the user's last one, and the assistant's text after it; None if there is none."""
    messages = [{"role": message["role"], "content": message["content"]} for message in said]
    target = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    return messages, target


@dataclass(frozen=True)
class QuestionKeyParts:
    """A question without the bytes of its images: what is needed to compute its key."""

    id: str
    messages: tuple[dict[str, str], ...]  # ends with the user's turn
    image_sha256: tuple[str, ...]


class QuestionFolder(Sequence[Question]):
    """The questions of one split, or some of them, read from files on access: a million questions need no memory."""

    def __init__(self, folder: Path, split: str, places: np.ndarray | None = None) -> None:
        """Reads the row counts of all files; raises FileNotFoundError if there is no file.

        `places` are row numbers of the split in ascending order; only these questions are part of the sequence.
        """
        self._files = sorted((folder / split).glob("*.parquet"))
        if not self._files:
            raise FileNotFoundError(f"no parquet file in {folder / split}")
        self._groups: list[tuple[Path, int]] = []
        rows: list[int] = []
        for file in self._files:
            with reading_parquet(file):
                metadata = pq.read_metadata(file)
            self._groups += [(file, group) for group in range(metadata.num_row_groups)]
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = list(accumulate(rows))
        self._places = places
        self._read: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        if self._places is not None:
            return len(self._places)
        return self._ends[-1] if self._ends else 0

    def iter_columns(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields these columns of all questions in order, without reading the others (images)."""
        start = 0
        for file in self._files:
            with reading_parquet(file):
                table = pq.read_table(file, columns=list(columns))
            end = start + table.num_rows
            if self._places is not None:
                first, last = np.searchsorted(self._places, [start, end])
                table = table.take(pa.array(self._places[first:last] - start))
            start = end
            yield from table.to_pylist()

    def iter_key_parts(self) -> Iterator[QuestionKeyParts]:
        """Yields all questions in order, without reading images."""
        for row in self.iter_columns(["id", "messages", "image_sha256"]):
            messages, _ = split_target(row["messages"])
            yield QuestionKeyParts(row["id"], tuple(messages), tuple(row["image_sha256"]))

    @overload
    def __getitem__(self, place: int) -> Question: ...
    @overload
    def __getitem__(self, place: slice) -> list[Question]: ...
    def __getitem__(self, place: int | slice) -> Question | list[Question]:
        """Returns one question with its images; reads its row group, so that sequential access is cheap."""
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(f"question {place} of {len(self)}")
        row = place if self._places is None else int(self._places[place])
        number = bisect_right(self._ends, row)
        if self._read[0] != number:
            file, group = self._groups[number]
            with reading_parquet(file):
                self._read = (number, pq.ParquetFile(file).read_row_group(group).to_pylist())
        return make_question(self._read[1][row - (self._ends[number - 1] if number else 0)])


def find_places(folder: Path, split: str, names: Collection[str]) -> np.ndarray:
    """Returns the row numbers of the questions of `split` whose ids are in `names`, ascending, int64."""
    ids = (row["id"] for row in QuestionFolder(folder, split).iter_columns(["id"]))
    return np.array([place for place, name in enumerate(ids) if name in names], np.int64)


def find_questions(folder: Path, splits: Sequence[str], names: Iterable[str]) -> dict[str, Question]:
    """Returns the questions with these ids, by id, from the first of `splits` that has them; leaves out unknown ids.

    Images of other questions are not read, and a split only if the splits before it lack some of the ids.
    """
    wanted = set(names)
    found: dict[str, Question] = {}
    for split in splits:
        if missing := wanted - found.keys():
            chosen = QuestionFolder(folder, split, find_places(folder, split, missing))
            found |= {question.id: question for question in chosen}
    return found


def read_questions(folder: Path, split: str) -> list[Question]:
    """Returns the questions of one split, in the order of the files."""
    return [make_question(row) for row in read_shards(folder / split).to_pylist()]

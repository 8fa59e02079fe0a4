"""Canonical rows of questions: one parquet schema for all sources, readable by plain `datasets`."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpora.markers import IMAGE_MARKER
from stages.job.files import read_shards, reading_parquet

MOST_IMAGES = 1000  # of one question
MOST_IMAGE_BYTES = 2**28  # of all images of one question; a photo has 5 MB
MOST_NAME_CHARACTERS = 1000  # of an id, a source, a kind
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the storage type of an Image column in `datasets`
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
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
    messages, target = _split_messages(row["messages"])
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


def _split_messages(said: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], str | None]:
    """Returns the turns up to the user's last one, and the assistant's text after it."""
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
    """The questions of one split, read from files on access: a million questions need no memory."""

    def __init__(self, folder: Path, split: str) -> None:
        """Reads the row counts of all files; raises FileNotFoundError if there is no file."""
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
        self._read: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def iter_key_parts(self) -> Iterator[QuestionKeyParts]:
        """Yields all questions in order, without reading images."""
        for file in self._files:
            with reading_parquet(file):
                rows = pq.read_table(file, columns=["id", "messages", "image_sha256"]).to_pylist()
            for row in rows:
                messages, _ = _split_messages(row["messages"])
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
        number = bisect_right(self._ends, place)
        if self._read[0] != number:
            file, group = self._groups[number]
            with reading_parquet(file):
                self._read = (number, pq.ParquetFile(file).read_row_group(group).to_pylist())
        return make_question(self._read[1][place - (self._ends[number - 1] if number else 0)])


def read_questions(folder: Path, split: str) -> list[Question]:
    """Returns the questions of one split, in the order of the files."""
    return [make_question(row) for row in read_shards(folder / split).to_pylist()]

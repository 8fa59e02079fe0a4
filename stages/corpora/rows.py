"""Canonical rows of questions: one parquet schema for all sources, readable by plain `datasets`."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from stages.config.answer_scorer import ScorerName
from stages.corpora.markers import IMAGE_MARKER
from stages.job.lazy_sequence import LazySequence
from stages.job.shards import Shards

MOST_IMAGES = 1000  # of one question
MOST_IMAGE_BYTES = 2**28  # of all images of one question; a photo has 5 MB
MOST_ANSWERS = 1000  # accepted for one question
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
        ("answers", pa.list_(pa.string())),  # all accepted answers, or those of several people; null if there is one
        ("scorer", pa.string()),  # as questions.scorer; null: by the kind of the reference
        ("source", pa.string()),
        ("kind", pa.string()),
        ("image_sha256", pa.list_(pa.string())),
    ]
)
_TEXT_COLUMNS = tuple(name for name in QUESTION_SCHEMA.names if name != "images")


@dataclass(frozen=True)
class Question:
    """One question as stages use it."""

    id: str
    images: Sequence[bytes]
    image_sha256: tuple[str, ...]
    messages: tuple[dict[str, str], ...]  # ends with the user's turn
    target: str | None  # the target answer in `warm_start`
    answer: str
    source: str
    kind: str
    answers: tuple[str, ...] = ()  # all accepted answers if there are several
    scorer: ScorerName = "auto"

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
        "answers": None,
        "scorer": None,
        "source": source,
        "kind": kind,
        "image_sha256": [hashlib.sha256(image).hexdigest() for image in images],
    }


def make_question(row: Mapping[str, Any], images: Sequence[bytes]) -> Question:
    """Returns a canonical row and its images as a Question; a last turn by the assistant becomes `target`."""
    messages, target = split_target(row["messages"])
    return Question(
        id=row["id"],
        images=images,
        image_sha256=tuple(row["image_sha256"]),
        messages=tuple(messages),
        target=target,
        answer=row["answer"] or "",
        source=row["source"],
        kind=row["kind"],
        answers=tuple(row["answers"] or ()),
        scorer=row["scorer"] or "auto",
    )


def join_asked(said: Sequence[Mapping[str, str]]) -> str:
    """Returns the texts before the target, with a blank for each image."""
    messages, _ = split_target(said)
    return "".join(message["content"] for message in messages).replace(IMAGE_MARKER, " ")


def hash_question(row: Mapping[str, Any]) -> str:
    """Returns a hash of what a row asks: its texts before the target, but for white space, and its images."""
    parts = (" ".join(join_asked(row["messages"]).split()), *row["image_sha256"])
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


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


class StoredImages(Sequence[bytes]):
    """The images of one row of a split, read on access: a question that nobody looks at costs no image."""

    def __init__(self, shards: Shards, row: int, count: int) -> None:
        self._shards, self._row, self._count = shards, row, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, place: int | slice) -> bytes | tuple[bytes, ...]:
        """Returns the bytes of one image, or of several."""
        return self._read()[place]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._read())

    def _read(self) -> tuple[bytes, ...]:
        images = self._shards.read_row(self._row, ["images"])["images"] if self._count else []
        return tuple(image["bytes"] for image in images)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __reduce__(self) -> tuple[Any, ...]:
        """A question that is sent to another process takes its images along."""
        return tuple, (tuple(self),)


class QuestionFolder(LazySequence[Question]):
    """The questions of one split, or some of them, read from files on access: a million questions need no memory."""

    def __init__(self, folder: Path, split: str, places: np.ndarray | None = None) -> None:
        """Reads the row counts of all files.

        `places` are row numbers of the split in ascending order; only these questions are part of the sequence. Raises
        FileNotFoundError if there is no file, ValueError with the name of a damaged one.
        """
        self._shards = Shards(folder / split)
        self._places = places

    def __len__(self) -> int:
        return len(self._shards) if self._places is None else len(self._places)

    def iter_columns(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields these columns of all questions in order, without reading the others (images)."""
        start = 0
        for table in self._shards.iter_tables(columns):
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

    def read_item(self, place: int) -> Question:
        """Returns one question; its images are read when they are looked at."""
        row = place if self._places is None else int(self._places[place])
        values = self._shards.read_row(row, _TEXT_COLUMNS)
        return make_question(values, StoredImages(self._shards, row, len(values["image_sha256"])))


class ChosenQuestions(Mapping[str, Question]):
    """Questions by id, read from files on access; holds the ids and 8 bytes per question."""

    def __init__(self, found: Mapping[str, tuple[int, int]], folders: Sequence[QuestionFolder]) -> None:
        """`found` has the number of the folder and the place in it of each question."""
        self._found, self._folders = found, folders

    def __getitem__(self, name: str) -> Question:
        folder, place = self._found[name]
        return self._folders[folder][place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def select(self, names: Iterable[str]) -> "QuestionList":
        """Returns the questions with these ids in this order, without those that are not here."""
        return QuestionList(self, [name for name in names if name in self._found])


class QuestionList(LazySequence[Question]):
    """Questions in an order of their own, read from files on access."""

    def __init__(self, questions: ChosenQuestions, names: Sequence[str]) -> None:
        self._questions, self._names = questions, names

    def __len__(self) -> int:
        return len(self._names)

    def read_item(self, place: int) -> Question:
        return self._questions[self._names[place]]


def find_places(folder: Path, split: str, names: Collection[str]) -> np.ndarray:
    """Returns the row numbers of the questions of `split` whose ids are in `names`, ascending, int64."""
    ids = (row["id"] for row in QuestionFolder(folder, split).iter_columns(["id"]))
    return np.array([place for place, name in enumerate(ids) if name in names], np.int64)


def find_questions(folder: Path, splits: Sequence[str], names: Iterable[str]) -> ChosenQuestions:
    """Returns the questions with these ids, by id, from the first of `splits` that has them; leaves out unknown ids.

    Only ids are read here, and those of a split only if the splits before it lack some of the questions.
    """
    wanted = set(names)
    found: dict[str, tuple[int, int]] = {}
    folders: list[QuestionFolder] = []
    for split in splits:
        if wanted:
            folders.append(QuestionFolder(folder, split))
            for place, row in enumerate(folders[-1].iter_columns(["id"])):
                if row["id"] in wanted:
                    found[row["id"]] = (len(folders) - 1, place)
            wanted -= found.keys()
    return ChosenQuestions(found, folders)


def read_questions(folder: Path, split: str) -> QuestionFolder:
    """Returns the questions of one split, in the order of the files; they are read on access."""
    return QuestionFolder(folder, split)

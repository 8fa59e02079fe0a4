"""Canonical rows of questions: one parquet schema for all sources, readable by plain `datasets`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.job.files import read_shards

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what datasets stores for an Image column
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("messages", pa.list_(MESSAGE)),  # `<image>` markers stand in the text; the part after the last user turn is a target
        ("answer", pa.string()),  # reference for judge and scorers; null where there is none
        ("source", pa.string()),
        ("kind", pa.string()),
        ("image_sha256", pa.list_(pa.string())),
    ]
)
IMAGE_MARKER = "<image>"


@dataclass(frozen=True)
class Question:
    """One question as stages use it."""

    id: str
    images: tuple[bytes, ...]
    image_sha256: tuple[str, ...]
    messages: tuple[dict[str, str], ...]  # ends with the user's turn
    target: str | None  # what the model should answer, in `warm_start`
    answer: str
    source: str
    kind: str

    @property
    def text(self) -> str:
        """The user's last turn without image markers."""
        return self.messages[-1]["content"].replace(IMAGE_MARKER, "").strip()


def canonical_row(
    question_id: str,
    images: list[bytes],
    messages: list[dict[str, str]],
    answer: str | None,
    source: str,
    kind: str,
) -> dict[str, Any]:
    """A row of SCHEMA; the bytes of the images are kept as they came."""
    return {
        "id": question_id,
        "images": [{"bytes": image, "path": None} for image in images],
        "messages": messages,
        "answer": answer,
        "source": source,
        "kind": kind,
        "image_sha256": [hashlib.sha256(image).hexdigest() for image in images],
    }


def question_of(row: Mapping[str, Any]) -> Question:
    """A canonical row as a Question; a last turn by the assistant becomes `target`."""
    messages = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    target = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
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


def read_questions(folder: Path, split: str) -> list[Question]:
    """The questions of one split, in the order of the files."""
    return [question_of(row) for row in read_shards(folder / split).to_pylist()]

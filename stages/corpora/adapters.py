"""From what users have to canonical rows: the tiny world, LLaVA JSON, canonical parquet.

An adapter yields, for each row of its source, either a canonical row or a Reject with the reason; nothing is dropped silently.
Images are read as they are: re-encoding would change their hash and their quality.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from stages.corpora.exercises import draw_row
from stages.corpora.kinds import KINDS
from stages.corpora.rows import IMAGE_MARKER, canonical_row
from stages.job.blocks import Questions, World
from stages.job.files import read_shards

Canonical = dict[str, Any]
WORLD_PARTS = {"warm_start": "train", "imitation": "imitation", "validation": "validation", "test": "test"}
WARM_START_STYLES = {"steps": 0.5, "arrows": 0.5}
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Reject:
    """A source row that can't be used."""

    row: int
    id: str
    reason: str


def world_rows(world: World, split: str) -> Iterator[Canonical]:
    """Endless canonical rows of one split of the tiny world."""
    part, number = WORLD_PARTS[split], 0
    while True:
        row = draw_row(world.seed, part, f"{split} {number}", world.kinds, WARM_START_STYLES, world.terse_kinds)
        messages = [{"role": "user", "content": f"{row.exercise.question}\n{IMAGE_MARKER}"}]
        if split == "warm_start":
            messages.append({"role": "assistant", "content": row.response})
        source = "handwritten digits" if KINDS[row.exercise.kind].subject == "digits" else "bar chart"
        name = f"{split}-{number:06d}"
        yield canonical_row(name, [row.picture.png], messages, row.exercise.answer, source, row.exercise.kind)
        number += 1


def user_rows(questions: Questions, root: Path) -> Iterator[Canonical | Reject]:
    """Canonical rows, or rejects, of the users' data that `questions` names, in the order of the source."""
    path = root / questions.path
    if not path.exists():
        raise FileNotFoundError(f"questions.path is {questions.path!r}: no such file or folder")
    if questions.kind == "rows":
        rows = enumerate((read_shards(path) if path.is_dir() else pq.read_table(path)).to_pylist())
        yield from (_checked(number, row["id"], row) for number, row in rows)
        return
    images = root / questions.images if questions.images else path.parent
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        name = str(row.get("id", number))
        try:
            yield _checked(number, name, _from_llava(name, row, images, path.name))
        except (KeyError, OSError, TypeError) as error:
            yield Reject(number, name, f"{type(error).__name__}: {error}")


def _from_llava(name: str, row: dict[str, Any], images: Path, source: str) -> Canonical:
    paths = row.get("image", [])
    files = [images / file for file in ([paths] if isinstance(paths, str) else paths)]
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    answer = turns[-1]["content"] if turns and turns[-1]["role"] == "assistant" else None
    return canonical_row(name, [file.read_bytes() for file in files], turns, answer, source, "open")


def _checked(number: int, name: str, row: Canonical) -> Canonical | Reject:
    """`row`, or a Reject that says what is wrong with it."""
    messages, images = row["messages"], row["images"]
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers != len(images):
        return Reject(number, name, f"{markers} {IMAGE_MARKER} markers in the text, {len(images)} images")
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        return Reject(number, name, "no question: no turn of the user has text")
    if not (row["answer"] or "").strip():
        return Reject(number, name, "no reference answer; the judge needs one")
    for image in images:
        try:
            with Image.open(io.BytesIO(image["bytes"])) as opened:
                opened.load()
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            return Reject(number, name, f"unreadable image: {error}")
    return row

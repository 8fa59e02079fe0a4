"""LLaVA JSON: a list of conversations, and a folder to which image paths are relative."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.questions import Questions
from stages.corpora.rows import make_canonical_row
from stages.corpora.source import Canonical, SourceRow

LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the conversations in `questions.path`, with images from `questions.images`.

    Raises FileNotFoundError if that folder is missing, ValueError if the file is not a JSON list.
    """
    path, images = root / questions.path, root / questions.images
    if not images.is_dir():
        raise FileNotFoundError(f"questions.images is {questions.images!r}: no such folder")
    for number, row in enumerate(_read_json(path)):
        name = str(row.get("id", number)) if isinstance(row, dict) else f"row {number}"
        yield SourceRow(name, partial(_convert_row, name, row, images, path.name))


def _read_json(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"questions.path {path} is not a JSON file: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"questions.path {path}: expected a list of questions, found {type(rows).__name__}")
    return rows


def _convert_row(name: str, row: dict[str, Any], images: Path, source: str) -> Canonical:
    paths = row.get("image") or []
    files = [_resolve_inside(images, file) for file in ([paths] if isinstance(paths, str) else paths)]
    turns = [{"role": LLAVA_ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    answer = turns[-1]["content"] if turns and turns[-1]["role"] == "assistant" else None
    return make_canonical_row(name, [file.read_bytes() for file in files], turns, answer, source, "open")


def _resolve_inside(images: Path, file: str) -> Path:
    """Returns the image's path; rejects a path outside the folder, because DVC would not see its changes."""
    path = images / file
    if not path.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"image {file!r} is outside the folder {images}; only that folder is watched")
    return path

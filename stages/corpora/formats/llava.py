"""LLaVA JSON: a list of conversations, and a folder to which image paths are relative."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.config.plain import abbreviate
from stages.config.questions import Questions
from stages.config.regular import explain_os_error, read_regular
from stages.corpora.faults import explain_row
from stages.corpora.json_rows import iter_json_rows
from stages.corpora.rows import MOST_IMAGE_BYTES, MOST_IMAGES, make_canonical_row
from stages.corpora.source import Canonical, SourceRow, UnusableData

OTHER_KIND = "other forms and files are read by questions.kind: sources"
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def _read_id(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError("expected text or an integer")


def _read_image(value: object) -> list[str]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise ValueError("expected a path or a list of paths")


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["human", "gpt", "system", "user", "assistant"] = Field(alias="from")
    value: str


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)
    id: Annotated[str | None, BeforeValidator(_read_id)] = None
    image: Annotated[list[str], BeforeValidator(_read_image), Field(max_length=MOST_IMAGES)] = []
    conversations: list[_Turn] = Field(min_length=1)


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the conversations in `questions.path`, with images from `questions.images`.

    Raises UnusableData if that folder is missing or the file is not a JSON list.
    """
    path, images = root / questions.path, root / questions.images
    if not images.is_dir():
        raise UnusableData(f"questions.images is {abbreviate(questions.images)}: no such folder")
    images = Path(os.path.realpath(images))
    for number, row in enumerate(_iter_rows(path)):
        given = row.get("id", number) if isinstance(row, dict) else f"row {number}"
        if given is None or given == "":
            given = number
        name = given if isinstance(given, str) else abbreviate(given)
        yield SourceRow(name, partial(_convert_row, name, row, images, path.name))


def _iter_rows(path: Path) -> Iterator[object]:
    try:
        yield from iter_json_rows(path)
    except UnusableData as error:
        raise UnusableData(f"{error}; {OTHER_KIND}") from error


def _convert_row(name: str, row: object, images: Path, source: str) -> Canonical:
    try:
        given = _Row.model_validate(row)
    except ValidationError as error:
        other = f"; {OTHER_KIND}" if isinstance(row, dict) and "conversations" not in row else ""
        raise ValueError(f"{explain_row(error)}{other}") from error
    turns = [{"role": LLAVA_ROLES[turn.role], "content": turn.value} for turn in given.conversations]
    answer = turns[-1]["content"] if turns[-1]["role"] == "assistant" else None
    return make_canonical_row(name, _read_images(given.image, images), turns, answer, source, "open")


def _read_images(files: list[str], images: Path) -> list[bytes]:
    found: list[bytes] = []
    for file in files:
        try:
            found.append(read_regular(_resolve_inside(images, file), MOST_IMAGE_BYTES - sum(map(len, found))))
        except OSError as error:
            raise ValueError(f"image {abbreviate(file)}: {explain_os_error(error)}; correct the path") from error
    return found


def _resolve_inside(images: Path, file: str) -> Path:
    """Returns the image's path; rejects a path that DVC does not watch.

    DVC hashes what is in the folder, and follows links to files but not to folders. So the image may be a link to
    anywhere, as in a snapshot of the hub, but the folder that it is in must be below `images`, links followed.
    """
    path = images / file
    if "\0" in file or not Path(os.path.realpath(path.parent)).is_relative_to(images):
        raise ValueError(f"image {abbreviate(file)} is outside the folder {images}; only that folder is watched")
    return path

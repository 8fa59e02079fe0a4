"""Converts users' data of any format (stages/config/formats.py) to canonical rows.

Each row of the source becomes either a canonical row or a reject with its reason; no row is dropped silently. The bytes
of images are kept: re-encoding would change their hash and quality.
"""

import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.config.formats import FORMATS
from stages.config.plain import abbreviate, make_printable
from stages.config.questions import Questions
from stages.config.regular import explain_os_error
from stages.corpora import formats
from stages.corpora.faults import explain_row
from stages.corpora.images import UnreadableImage, check_image
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.rows import MOST_IMAGE_BYTES, MOST_IMAGES, MOST_NAME_CHARACTERS
from stages.corpora.source import Canonical, RowFault, SourceRow, UnusableData
from stages.job.cores import count_cores

# Control characters and lone surrogates cannot be stored or shown; the two private-use characters mark our own
# insertions while a prompt is rendered.
_UNUSABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff\ue000\ue001]")
ROWS_PER_CORE = 8  # rows that are converted at a time, for each core: with photos 2 MB
_Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME_CHARACTERS)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Image(_Part):
    bytes: bytes


class _Message(_Part):
    role: Literal["system", "user", "assistant"]
    content: str


class _CanonicalRow(_Part):
    """The types of a canonical row (stages/corpora/rows.py::QUESTION_SCHEMA)."""

    id: _Name
    images: list[_Image] = Field(max_length=MOST_IMAGES)
    messages: list[_Message] = Field(min_length=1)
    answer: str | None
    source: _Name
    kind: _Name
    image_sha256: list[str]


@dataclass(frozen=True)
class UnusableRow:
    """A source row that cannot be used."""

    row: int
    id: str
    reason: str
    file: str = ""
    field: str = ""
    value: str = ""


def read_user_rows(questions: Questions, root: Path) -> Iterator[Canonical | UnusableRow]:
    """Yields canonical rows, or rejects, of the data that `questions` names, in the order of the source.

    Raises UnusableData as `read_source_rows`.
    """
    for _, row in convert_rows(enumerate(read_source_rows(questions, root)), questions):
        yield row


def read_source_rows(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of the data that `questions` names, not converted yet.

    Raises UnusableData if there is no such data, and as the format's reader.
    """
    if not (root / questions.path).exists():
        raise UnusableData(f"questions.path is {abbreviate(questions.path)}: no such file or folder")
    reader = importlib.import_module(f"{formats.__name__}.{FORMATS[questions.kind].reader}")
    yield from reader.read(questions, root)


def convert_rows(
    sources: Iterator[tuple[int, SourceRow]], questions: Questions
) -> Iterator[tuple[SourceRow, Canonical | UnusableRow]]:
    """Yields each numbered source row with its canonical row or reject, in order.

    Rows are read and their images decoded on all cores. Raises what `sources` raises, after the rows before it.
    """
    cores = count_cores()
    # Threads suffice: reading, hashing and decoding release the lock of the interpreter. The source is read while they
    # rest: a reader may limit the memory of the process for a moment (formats/canonical.py).
    with ThreadPoolExecutor(cores) as threads:
        while True:
            block, fault = _read_block(sources, ROWS_PER_CORE * cores)
            converted = threads.map(partial(_convert_row, questions), block)
            yield from zip((source for _, source in block), converted, strict=True)
            if fault is not None:
                raise fault
            if not block:
                return


def _read_block(
    sources: Iterator[tuple[int, SourceRow]], most: int
) -> tuple[list[tuple[int, SourceRow]], UnusableData | None]:
    """Returns the next rows, none at the end, and what the reader raises behind them."""
    block: list[tuple[int, SourceRow]] = []
    try:
        block.extend(islice(sources, most))
    except UnusableData as error:
        return block, error
    return block, None


def _convert_row(questions: Questions, numbered: tuple[int, SourceRow]) -> Canonical | UnusableRow:
    number, source = numbered
    try:
        row = source.canonical()
    except OSError as error:
        found: Canonical | UnusableRow = _make_reject(number, source.name, explain_os_error(error))
    except RowFault as error:
        reject = _make_reject(number, source.name, str(error))
        found = replace(reject, field=make_printable(error.field), value=make_printable(error.value))
    except ValueError as error:
        found = _make_reject(number, source.name, str(error))
    else:
        found = check_row(number, row["id"] if isinstance(row["id"], str) else source.name, row, questions)
    if isinstance(found, UnusableRow) and source.row >= 0:
        found = replace(found, row=source.row, file=make_printable(source.file))
    return found


def check_row(number: int, name: str, row: Canonical, questions: Questions) -> Canonical | UnusableRow:
    """Returns `row`, or a reject with the reason; later stages read rows that pass without further checks."""
    reason = find_type_fault(row)
    if reason is None:
        reason = find_text_fault(row, questions.max_characters)
    if reason is None:
        reason = find_image_fault(row, questions.max_image_pixels)
    return row if reason is None else _make_reject(number, name, reason)


def _make_reject(number: int, name: str, reason: str) -> UnusableRow:
    return UnusableRow(number, make_printable(name)[:100], make_printable(reason))


def find_type_fault(row: Canonical) -> str | None:
    """Returns the first field of `row` that has not its type, with its value; None if all have."""
    try:
        _CanonicalRow.model_validate(row)
    except ValidationError as error:
        return explain_row(error)
    return None


def find_text_fault(row: Canonical, max_characters: int) -> str | None:
    """Returns why the texts of `row` cannot be used; None if they can.

    A special token or an extra `<image>` in a text is allowed and is read as text. Only markers in the user's turns
    count; their number must equal the number of images.
    """
    messages = row["messages"]
    texts = [row["id"], row["answer"], row["source"], row["kind"], *(message["content"] for message in messages)]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].replace(IMAGE_MARKER, "").strip():
        return "no question: no text in a turn of the user at the end"
    if not (row["answer"] or "").strip():
        return "no reference answer; the judge needs one"
    length = sum(len(text) for text in (row["answer"], *(message["content"] for message in messages)))
    if length > max_characters:
        return f"{length:,} characters of text, more than questions.max_characters ({max_characters:,})"
    for text in filter(None, texts):
        found = _UNUSABLE.search(text)
        if found:
            return (
                f"the text holds the character U+{ord(found.group()):04X}, which can't be stored or is our "
                "own mark; remove it"
            )
    return find_marker_fault(asked, len(row["images"]))


def find_marker_fault(asked: Sequence[Mapping[str, str]], images: int) -> str | None:
    """Returns what is wrong with the image markers in the turns before the target; None if nothing is."""
    markers = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] == "user")
    others = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] != "user")
    if others:
        return f"an {IMAGE_MARKER} marker in a turn that is not the user's"
    return None if markers == images else f"{markers} {IMAGE_MARKER} markers in the text, {images} images"


def find_image_fault(row: Canonical, max_pixels: int) -> str | None:
    """Returns why an image of `row` cannot be shown to a model; None if all can."""
    if sum(len(image["bytes"]) for image in row["images"]) > MOST_IMAGE_BYTES:
        return f"images of more than {MOST_IMAGE_BYTES:,} bytes"
    for image, given in zip_longest(row["images"], row["image_sha256"]):
        if image is None or given != hashlib.sha256(image["bytes"]).hexdigest():
            return f"image_sha256 {abbreviate(given)} is not that of the image's bytes"
        try:
            check_image(image["bytes"], max_pixels)
        except UnreadableImage as error:
            return str(error)
    return None

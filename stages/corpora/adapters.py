"""Converts users' data of any format (stages/config/formats.py) to canonical rows.

Each row of the source becomes either a canonical row or a reject with its reason; no row is dropped silently. The bytes
of images are kept: re-encoding would change their hash and quality.
"""

import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.config.answer_scorer import ScorerName
from stages.config.formats import FORMATS
from stages.config.plain import abbreviate, make_printable
from stages.config.questions import Questions
from stages.config.regular import explain_os_error
from stages.corpora import formats
from stages.corpora.faults import make_fault
from stages.corpora.images import UnreadableImage, open_reduced
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.prints import ImagePrint, make_print
from stages.corpora.rows import MOST_ANSWERS, MOST_IMAGE_BYTES, MOST_IMAGES, MOST_NAME_CHARACTERS
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
    answers: list[str] | None = Field(None, max_length=MOST_ANSWERS)
    scorer: ScorerName | None = None
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


class CheckedRow(NamedTuple):
    """A source row after all checks."""

    origin: SourceRow
    found: Canonical | UnusableRow
    prints: Sequence[ImagePrint] = ()  # of its images; none of a reject


def read_user_rows(questions: Questions, root: Path) -> Iterator[Canonical | UnusableRow]:
    """Yields canonical rows, or rejects, of the data that `questions` names, in the order of the source.

    Raises UnusableData as `read_source_rows`.
    """
    return (row.found for row in convert_rows(enumerate(read_source_rows(questions, root)), questions))


def read_source_rows(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of the data that `questions` names, not converted yet.

    Raises UnusableData if there is no such data, and as the format's reader.
    """
    if not (root / questions.path).exists():
        raise UnusableData(f"questions.path is {abbreviate(questions.path)}: no such file or folder")
    reader = importlib.import_module(f"{formats.__name__}.{FORMATS[questions.kind].reader}")
    yield from reader.read(questions, root)


def convert_rows(sources: Iterator[tuple[int, SourceRow]], questions: Questions) -> Iterator[CheckedRow]:
    """Yields each numbered source row with its canonical row or reject, in order.

    Rows are read and their images decoded on all cores. Raises what `sources` raises, after the rows before it.
    """
    cores = count_cores()
    # Threads suffice: reading, hashing and decoding release the lock of the interpreter. The source is read while they
    # rest: a reader may limit the memory of the process for a moment (formats/canonical.py).
    with ThreadPoolExecutor(cores) as threads:
        while True:
            block, fault = _read_block(sources, ROWS_PER_CORE * cores)
            yield from threads.map(partial(_convert_row, questions), block)
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


def _convert_row(questions: Questions, numbered: tuple[int, SourceRow]) -> CheckedRow:
    number, origin = numbered
    name = origin.name
    try:
        row = origin.canonical()
        row = row | {"scorer": row.get("scorer") or find_scorer(questions, origin)}
        name = row["id"] if isinstance(row["id"], str) else name
        return CheckedRow(origin, row, check_row(row, questions))
    except OSError as error:
        fault = RowFault(explain_os_error(error))
    except RowFault as error:
        fault = error
    except ValueError as error:
        fault = RowFault(str(error))
    return CheckedRow(origin, make_reject(origin, name, fault, number))


def find_scorer(questions: Questions, origin: SourceRow) -> ScorerName | None:
    """Returns the scorer of a row's source, else that of all questions; None for the kind of the reference."""
    chosen = questions.sources[origin.source].scorer if questions.sources else None
    name = chosen or questions.scorer
    return None if name == "auto" else name


def check_row(row: Canonical, questions: Questions) -> list[ImagePrint]:
    """Returns the prints of the images of a row that later stages read without further checks; else raises RowFault."""
    fault = find_type_fault(row) or find_text_fault(row, questions.max_characters)  # texts only of the right types
    if fault is not None:
        raise fault
    return print_images(row, questions.max_image_pixels)


def make_reject(origin: SourceRow, name: str, fault: RowFault, number: int = -1) -> UnusableRow:
    """Returns the reject of a row; `number` counts the rows of all files, for readers that give none of their own."""
    return UnusableRow(
        number if origin.row < 0 else origin.row,
        make_printable(name)[:100],
        make_printable(str(fault)),
        make_printable(origin.file),
        make_printable(fault.field),
        make_printable(fault.value)[:100],
    )


def find_type_fault(row: Canonical) -> RowFault | None:
    """Returns the first field of `row` that has not its type, with its value; None if all have."""
    try:
        _CanonicalRow.model_validate(row)
    except ValidationError as error:
        return make_fault(error)
    return None


def find_text_fault(row: Canonical, max_characters: int) -> RowFault | None:
    """Returns why the texts of `row` cannot be used; None if they can.

    A special token or an extra `<image>` in a text is allowed and is read as text. Only markers in the user's turns
    count; their number must equal the number of images.
    """
    messages = row["messages"]
    said = [(f"messages.{place}.content", message["content"]) for place, message in enumerate(messages)]
    answers = [(f"answers.{place}", answer) for place, answer in enumerate(row.get("answers") or ())]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].replace(IMAGE_MARKER, "").strip():
        given = asked[-1]["content"] if asked else ""
        return RowFault("no question: no text in a turn of the user at the end", "messages", abbreviate(given))
    if not (row["answer"] or "").strip():
        return RowFault("no reference answer; the judge needs one", "answer", abbreviate(row["answer"]))
    length = sum(len(text) for text in (row["answer"], *(text for _, text in [*answers, *said])))
    if length > max_characters:
        reason = f"{length:,} characters of text, more than questions.max_characters ({max_characters:,})"
        return RowFault(reason, *max(("answer", row["answer"]), *answers, *said, key=lambda one: len(one[1])))
    for field, text in [*((key, row[key]) for key in ("id", "answer", "source", "kind")), *answers, *said]:
        found = _UNUSABLE.search(text)
        if found:
            reason = (
                f"the text holds the character U+{ord(found.group()):04X}, which can't be stored or is our "
                "own mark; remove it"
            )
            return RowFault(reason, field, abbreviate(text))
    fault = find_marker_fault(asked, len(row["images"]))
    return None if fault is None else RowFault(fault, "messages", abbreviate(asked[-1]["content"]))


def find_marker_fault(asked: Sequence[Mapping[str, str]], images: int) -> str | None:
    """Returns what is wrong with the image markers in the turns before the target; None if nothing is."""
    markers = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] == "user")
    others = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] != "user")
    if others:
        return f"an {IMAGE_MARKER} marker in a turn that is not the user's"
    return None if markers == images else f"{markers} {IMAGE_MARKER} markers in the text, {images} images"


def print_images(row: Canonical, max_pixels: int) -> list[ImagePrint]:
    """Returns the prints of the images of `row`; raises RowFault for one that cannot be shown to a model."""
    if sum(len(image["bytes"]) for image in row["images"]) > MOST_IMAGE_BYTES:
        raise RowFault(f"images of more than {MOST_IMAGE_BYTES:,} bytes", "images")
    prints = []
    for place, (image, given) in enumerate(zip_longest(row["images"], row["image_sha256"])):
        field = f"images.{place}"
        if image is None or given != hashlib.sha256(image["bytes"]).hexdigest():
            shown = abbreviate(given)
            raise RowFault(f"image_sha256 {shown} is not that of the image's bytes", f"image_sha256.{place}", shown)
        try:
            prints.append(make_print(open_reduced(image["bytes"], max_pixels)))
        except UnreadableImage as error:
            raise RowFault(str(error), field, f"{len(image['bytes']):,} bytes") from error
    return prints

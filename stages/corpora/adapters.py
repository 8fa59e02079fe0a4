"""From what users have to canonical rows, whatever its format (stages/config/formats.py).

Each row of the source becomes either a canonical row or a Reject with the reason; nothing is dropped silently. Images
are read as they are: re-encoding would change their hash and their quality.
"""

import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from stages.config.formats import FORMATS
from stages.config.questions import Questions
from stages.corpora import formats
from stages.corpora.images import UnreadableImage, open_image
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.source import Canonical

# Halves of characters can't be stored as UTF-8; the two private characters mark our own pieces while a prompt is
# rendered.
_UNUSABLE = re.compile("[\ud800-\udfff\ue000\ue001]")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class UnusableRow:
    """A source row that can't be used."""

    row: int
    id: str
    reason: str


def read_user_rows(questions: Questions, root: Path) -> Iterator[Canonical | UnusableRow]:
    """Canonical rows, or rejects, of the users' data that `questions` names, in the order of the source.

    Raises FileNotFoundError where there is nothing at `questions.path`, and what the reader of the format raises.
    """
    path = root / questions.path
    if not path.exists():
        raise FileNotFoundError(f"questions.path is {questions.path!r}: no such file or folder")
    reader = importlib.import_module(f"{formats.__name__}.{FORMATS[questions.kind].reader}")
    for number, source in enumerate(reader.read(questions, root)):
        try:
            row = source.canonical()
        except (AttributeError, KeyError, IndexError, OSError, TypeError, ValueError) as error:
            yield UnusableRow(number, source.name, f"{type(error).__name__}: {error}")
        else:
            yield check_row(number, source.name, row, questions)


def check_row(number: int, name: str, row: Canonical, questions: Questions) -> Canonical | UnusableRow:
    """`row`, or a Reject that says what is wrong with it: what passes here is read by every later stage without a
    look.
    """
    reason = find_text_fault(row, questions.max_characters)
    if reason is None:
        reason = find_image_fault(row, questions.max_image_pixels)
    return row if reason is None else UnusableRow(number, _make_printable(name), _make_printable(reason))


def find_text_fault(row: Canonical, max_characters: int) -> str | None:
    """What no stage could use about the texts of `row`; None for a good one.

    A special token or a further `<image>` written in a text is no fault: it is read as text. As markers count
    those in the user's turns, and there have to be as many as images.
    """
    messages = row["messages"] or []
    texts = [row["id"], row["answer"], row["source"], row["kind"], *(message["content"] for message in messages)]
    strange = next((text for text in texts if text is not None and not isinstance(text, str)), None)
    if strange is not None:
        return f"a text is {type(strange).__name__}, not text: {str(strange)[:40]!r}"
    if any(message["role"] not in ROLES or message["content"] is None for message in messages) or row["id"] is None:
        return "the id, or a turn's role or content is missing"
    asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].replace(IMAGE_MARKER, "").strip():
        return "no question: no text in a turn of the user at the end"
    if not (row["answer"] or "").strip():
        return "no reference answer; the judge needs one"
    for text in filter(None, texts):
        found = _UNUSABLE.search(text)
        if found:
            return (
                f"the text holds the character U+{ord(found.group()):04X}, which can't be stored or is our "
                "own mark; remove it"
            )
    length = sum(len(text) for text in (row["answer"], *(message["content"] for message in messages)))
    if length > max_characters:
        return f"{length:,} characters of text, more than questions.max_characters ({max_characters:,})"
    return find_marker_fault(asked, len(row["images"] or []))


def find_marker_fault(asked: Sequence[Mapping[str, str]], images: int) -> str | None:
    """What is wrong with the places of the images in the turns before the target."""
    markers = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] == "user")
    others = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] != "user")
    if others:
        return f"an {IMAGE_MARKER} marker in a turn that is not the user's"
    return None if markers == images else f"{markers} {IMAGE_MARKER} markers in the text, {images} images"


def find_image_fault(row: Canonical, max_pixels: int) -> str | None:
    """Why an image of `row` can't be shown to a model; None when all can."""
    hashes = row["image_sha256"] or []
    for image, given in zip_longest(row["images"] or [], hashes):
        if image is None or image["bytes"] is None:
            return "an image has no bytes: canonical rows hold the files themselves"
        if given != hashlib.sha256(image["bytes"]).hexdigest():
            return f"image_sha256 {str(given)[:12]} is not that of the image's bytes"
        try:
            open_image(image["bytes"], max_pixels)
        except UnreadableImage as error:
            return str(error)
    return None


def _make_printable(text: str) -> str:
    """`text` as UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

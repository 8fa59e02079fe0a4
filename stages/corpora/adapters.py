"""Converts users' data of any format (stages/config/formats.py) to canonical rows.

Each row of the source becomes either a canonical row or a reject with its reason; no row is dropped silently. The bytes
of images are kept: re-encoding would change their hash and quality.
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

# Lone surrogates cannot be stored as UTF-8; the two private-use characters mark our own insertions while a prompt is
# rendered.
_UNUSABLE = re.compile("[\ud800-\udfff\ue000\ue001]")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class UnusableRow:
    """A source row that cannot be used."""

    row: int
    id: str
    reason: str


def read_user_rows(questions: Questions, root: Path) -> Iterator[Canonical | UnusableRow]:
    """Yields canonical rows, or rejects, of the data that `questions` names, in the order of the source.

    Raises FileNotFoundError if `questions.path` does not exist, and the errors of the format's reader.
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
    """Returns `row`, or a reject with the reason; later stages read rows that pass without further checks."""
    reason = find_text_fault(row, questions.max_characters)
    if reason is None:
        reason = find_image_fault(row, questions.max_image_pixels)
    return row if reason is None else UnusableRow(number, _make_printable(name), _make_printable(reason))


def find_text_fault(row: Canonical, max_characters: int) -> str | None:
    """Returns why the texts of `row` cannot be used; None if they can.

    A special token or an extra `<image>` in a text is allowed and is read as text. Only markers in the user's turns
    count; their number must equal the number of images.
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
    """Returns what is wrong with the image markers in the turns before the target; None if nothing is."""
    markers = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] == "user")
    others = sum(message["content"].count(IMAGE_MARKER) for message in asked if message["role"] != "user")
    if others:
        return f"an {IMAGE_MARKER} marker in a turn that is not the user's"
    return None if markers == images else f"{markers} {IMAGE_MARKER} markers in the text, {images} images"


def find_image_fault(row: Canonical, max_pixels: int) -> str | None:
    """Returns why an image of `row` cannot be shown to a model; None if all can."""
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
    """Returns `text` with characters that UTF-8 cannot encode escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

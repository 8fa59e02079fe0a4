"""Images as rows give them: paths, bytes, base64, data URLs, structs of `datasets`, and lists of these."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from stages.corpora.containers.image_files import ImagePlaces, shorten_value
from stages.corpora.rows import MOST_IMAGE_BYTES, MOST_IMAGES
from stages.corpora.source import RowFault

_DATA = re.compile(r"(?is)data:([^,;]*)((?:;[^,;]*)*),(.*)")
# how PNG, JPEG, GIF, WEBP, BMP and TIFF begin in base64
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}")
_SHORTEST = 64  # characters of an image in base64; below it, a text is a path
_INNER = ("bytes", "data", "base64", "image", "path", "url", "image_url", "file_name", "file", "source", "uri")
_DEEPEST = 5


def list_pictures(value: Any, field: str, depth: int = 0) -> list[str | bytes]:
    """Returns the images in `value` as paths or bytes; none for null and empty text.

    Raises RowFault for what is no image, with the field and its value.
    """
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, bytes):
        return [value] if value else []
    if isinstance(value, str):
        return _read_text(value, field)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return [str(value)]  # the id of an image, its name without the ending
    if depth > _DEEPEST:
        raise RowFault("an image is nested too deeply", field, shorten_value(value))
    if isinstance(value, list | tuple):
        if len(value) > MOST_IMAGES:
            raise RowFault(f"{len(value):,} images, more than {MOST_IMAGES:,}", field)
        return [one for inner in value for one in list_pictures(inner, field, depth + 1)]
    if isinstance(value, Mapping):
        for key in _INNER:
            inner = value.get(key)
            if inner is not None and inner != "" and inner != b"":
                if key in ("bytes", "data", "base64") and isinstance(inner, str) and not inner.startswith("data:"):
                    return [_decode(inner, field)]
                return list_pictures(inner, field, depth + 1)
        if not value or any(key in value for key in _INNER):
            return []  # a struct of nulls: a row without image
    raise RowFault("an image is a path, bytes, base64, or an object with path or bytes", field, shorten_value(value))


def _read_text(text: str, field: str) -> list[str | bytes]:
    if not text.strip():
        return []
    if text[:5].lower() == "data:" and (found := _DATA.fullmatch(text)):
        if not found.group(1).lower().startswith("image/"):
            raise RowFault(f"data of type {shorten_value(found.group(1))}, not an image", field, shorten_value(text))
        if "base64" not in found.group(2).lower():
            raise RowFault("a data URL without base64", field, shorten_value(text))
        return [_decode(found.group(3), field)]
    if text.startswith(_BEGINNINGS) and len(text) >= _SHORTEST and _BASE64.fullmatch(text.rstrip()):
        return [_decode(text, field)]
    if text.startswith(("[", "{")):
        try:
            inner = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return [text]  # a path with a bracket
        return list_pictures(inner, field, 1)
    return [text]


def _decode(text: str, field: str) -> bytes:
    if len(text) > MOST_IMAGE_BYTES * 4 // 3 + 4:
        raise RowFault(f"longer than {MOST_IMAGE_BYTES:,} bytes", field)
    packed = re.sub(r"\s+", "", text).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowFault(f"not base64: {error}", field, shorten_value(text)) from error


def read_pictures(images: list[str | bytes], places: ImagePlaces, field: str) -> list[bytes]:
    """Returns the bytes of the images in order; raises RowFault with the path that cannot be read."""
    found: list[bytes] = []
    if len(images) > MOST_IMAGES:
        raise RowFault(f"{len(images):,} images, more than {MOST_IMAGES:,}", field)
    for image in images:
        left = MOST_IMAGE_BYTES - sum(map(len, found))
        if isinstance(image, bytes):
            found.append(image)
            continue
        try:
            found.append(places.read(image, left))
        except RowFault as fault:
            raise RowFault(f"image {shorten_value(image)}: {fault}", field, shorten_value(image)) from fault
    return found

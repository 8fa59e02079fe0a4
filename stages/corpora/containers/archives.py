"""WebDataset: tar archives whose members with one name before the first dot are one row; nothing is unpacked."""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.corpora.containers.record import Record
from stages.corpora.containers.text import open_bytes, reading_text
from stages.corpora.json_rows import DECODER
from stages.corpora.rows import MOST_IMAGE_BYTES
from stages.corpora.source import RowFault, UnusableData

MOST_HEADER_BYTES = 2**20  # of a long name or other metadata of a member, which the library reads into memory
_METADATA = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_TEXTS = ("txt", "text", "caption", "transcript")
_NUMBERS = ("cls", "cls2", "index", "inx", "id")
PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")


class BoundedMember(tarfile.TarInfo):
    """A member whose metadata have a bound."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "BoundedMember":
        """Returns the member; raises tarfile.ReadError where its metadata are too long, or the archive breaks off.

        The library itself takes a header that is cut or damaged for the end of the archive.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"breaks off: {error}") from error
        if member.type in _METADATA and member.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"metadata of {member.size:,} bytes")
        return member


def iter_archive_records(path: Path, shown: str) -> Iterator[Record]:
    """Yields a record for each name: columns are the endings of its members, and the keys of a member .json.

    Raises UnusableData for an archive that is damaged or holds no files.
    """
    number = -1
    with reading_text(shown), open_bytes(path) as content:
        try:
            with tarfile.open(fileobj=content, mode="r|", tarinfo=BoundedMember) as archive:
                for number, (key, values, fault) in enumerate(_iter_groups(archive)):
                    yield Record(f"{shown}::{key}", number, values, fault)
        except tarfile.TarError as error:
            reason = make_printable(str(error))
            raise UnusableData(f"{shown}: damaged after row {number} ({reason}); write or fetch it again") from error
    if number < 0:
        raise UnusableData(f"{shown}: no files in this archive; name one with questions")


def _iter_groups(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, Any], RowFault | None]]:
    key: str | None = None
    values: dict[str, Any] = {}
    fault: RowFault | None = None
    taken = 0
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # the library keeps all it has seen
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.partition(".")
        if not member.isfile() or not stem or not ending:
            continue
        here = posixpath.join(folder, stem)
        if here != key:
            if key is not None:
                yield key, values, fault
            key, values, fault, taken = here, {"__key__": here}, None, 0
        taken += member.size
        if taken > MOST_IMAGE_BYTES:
            fault = fault or RowFault(f"more than {MOST_IMAGE_BYTES:,} bytes", ending, make_printable(name))
            continue
        opened = archive.extractfile(member)
        content = opened.read() if opened is not None else b""
        try:
            values |= _read_member(ending.lower(), content)
        except (UnicodeDecodeError, json.JSONDecodeError, ValueError, RecursionError) as error:
            reason = make_printable(str(error)) or type(error).__name__
            fault = fault or RowFault(f"member {abbreviate(name)} cannot be read: {reason}", ending)
    if key is not None:
        yield key, values, fault


def _read_member(ending: str, content: bytes) -> dict[str, Any]:
    last = ending.rsplit(".", 1)[-1]
    if last in PICTURES:
        return {ending: content}
    if last == "json":
        found = DECODER.decode(content.decode("utf-8-sig"))
        return found if isinstance(found, dict) and ending == "json" else {ending.removesuffix(".json"): found}
    if last in _TEXTS:
        return {ending: content.decode("utf-8-sig")}
    if last in _NUMBERS:
        return {ending: content.decode("utf-8").strip()}
    if last in ("mp4", "avi", "mov", "webm", "mkv"):
        return {"video": ending}
    if last in ("wav", "mp3", "flac", "ogg", "m4a"):
        return {"audio": ending}
    if last in ("pkl", "pickle", "pyd", "pth", "npy", "npz", "ten"):
        return {ending: f"(a member .{last}, which is not read)"}
    return {ending: _decode_text(content)}


def _decode_text(content: bytes) -> str | bytes:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content

"""Opens text files of any Unicode encoding, also compressed; their lines have a bound."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from stages.config.plain import make_printable
from stages.config.regular import explain_os_error, open_regular
from stages.corpora.source import UnusableData

# 32 before 16: the mark of UTF-16 begins that of UTF-32
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LIKELY = ("gb18030", "shift_jis", "euc_kr", "cp1252")  # named in the message, never taken: several fit most bytes
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}


def find_compression(head: bytes) -> str | None:
    """Returns how a file that begins with `head` is compressed; None if it is not."""
    return next((name for mark, name in COMPRESSIONS.items() if head.startswith(mark)), None)


def open_bytes(path: Path) -> io.BufferedReader:
    """Returns the content of a regular file, decompressed while it is read. Raises OSError."""
    plain = os.fdopen(open_regular(path), "rb")
    compression = find_compression(plain.peek(6))
    if compression is None:
        return plain
    opened: Any
    if compression == "gzip":
        opened = gzip.GzipFile(fileobj=plain)
    elif compression == "bz2":
        opened = bz2.BZ2File(plain)
    elif compression == "xz":
        opened = lzma.LZMAFile(plain)  # noqa: SIM115 - closed with what is returned
    else:
        opened = pa.CompressedInputStream(pa.PythonFile(plain, "r"), "zstd")
    return io.BufferedReader(opened)


def open_text(path: Path) -> TextIO:
    """Returns the text of a file in UTF-8, or in UTF-16 or UTF-32 with a mark at its start. Raises OSError."""
    content = open_bytes(path)
    return io.TextIOWrapper(content, encoding=_find_encoding(content.peek(4)[:4]), newline="")


def _find_encoding(head: bytes) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head[:1] in b"[{" and head[1:2] == b"\0":
        return "utf-16-le"
    return "utf-8"


@contextmanager
def reading_text(shown: str) -> Iterator[None]:
    """Turns what a text that cannot be decoded or decompressed raises into UnusableData with the file's name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UnusableData(f"{shown}: {explain_encoding(error)}") from error
    except UnicodeError as error:  # UTF-16 without its mark
        raise UnusableData(f"{shown}: {make_printable(str(error))}; save it as UTF-8") from error
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = make_printable(str(error)) or type(error).__name__
        raise UnusableData(f"{shown}: the compressed file is damaged ({reason}); write or fetch it again") from error
    except OSError as error:
        raise UnusableData(f"{shown}: {make_printable(explain_os_error(error))}; write or fetch it again") from error


def explain_encoding(error: UnicodeDecodeError) -> str:
    """Returns what is wrong with the bytes, the encoding that they may have, and the remedy."""
    place = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "its end"
    if not error.encoding.startswith("utf-8"):
        return f"is not {error.encoding.upper()} ({place}); save it as UTF-8"
    around = bytes(error.object[max(0, error.start - 2000) : error.start + 2000])
    for name in _LIKELY:
        # the ends of the piece may cut a character
        if any(_fits(around[start : len(around) - end], name) for start in (0, 1) for end in (0, 1, 2, 3)):
            return (
                f"is not UTF-8 ({place}), it may be {name.upper()}; save it as UTF-8, such as with "
                f"`iconv -f {name.upper()} -t UTF-8`"
            )
    return f"is not UTF-8 ({place}); save it as UTF-8"


def _fits(piece: bytes, encoding: str) -> bool:
    try:
        piece.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True

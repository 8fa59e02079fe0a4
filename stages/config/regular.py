"""Reads files that users name: regular files only, up to a length, without waiting."""

import errno
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

SYSTEM_FOLDERS = ("proc", "sys", "dev")  # the kernel makes the files there, some without end


class IrregularFile(OSError):
    """A path that is not a regular file, or a file that is too long; the message says what it is."""


def open_regular(path: Path) -> int:
    """Returns a file descriptor for reading; raises IrregularFile for what is no regular file, OSError as `os.open`.

    A pipe without a writer would block `open` for ever; with O_NONBLOCK it does not. Files that the kernel makes
    (/proc) are regular for the system; here they are not.
    """
    try:
        if os.path.realpath(path).split("/")[1] in SYSTEM_FOLDERS:
            raise IrregularFile("a file of the system")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise IrregularFile("a socket or a device, not a file") from error
        raise
    except ValueError as error:  # a NUL in the path
        raise IrregularFile("no file can have this name") from error
    kind = KINDS.get(stat.S_IFMT(os.fstat(descriptor).st_mode))
    if kind is None:
        return descriptor
    os.close(descriptor)
    raise IrregularFile(f"{kind}, not a file")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Returns the content of a regular file of at most `most_bytes`; raises IrregularFile or OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        long = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if long else file.read(most_bytes + 1)  # a file may grow while it is read
    if long or len(content) > most_bytes:
        raise IrregularFile(f"longer than {most_bytes:,} bytes")
    return content


def explain_os_error(error: OSError) -> str:
    """Returns the reason without the path, which callers show shortened."""
    return error.strerror or " ".join(str(error).split())


def explain_decoding(error: UnicodeDecodeError) -> str:
    """Returns what is wrong with the bytes of a text file, and the remedy."""
    start = bytes(error.object[:2])
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return "is UTF-16; save it as UTF-8"
    return f"is not UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x}); save it as UTF-8"

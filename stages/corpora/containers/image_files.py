"""Image files by the paths in users' rows: relative, absolute, in archives; never outside what is watched."""

import os
import re
import tarfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from stages.config.plain import abbreviate, make_printable
from stages.config.regular import explain_os_error, open_regular, read_regular
from stages.corpora.containers.archives import BoundedMember
from stages.corpora.rows import MOST_IMAGE_BYTES
from stages.corpora.source import RowFault

MOST_MEMBERS = 5_000_000  # of an archive of images; its index takes about 200 bytes for each
MOST_FOLDERS = 10_000  # that are remembered as watched or not
_ADDRESS = re.compile(r"(?i)[a-z][a-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")  # that are tried where a name has none, as an id of an image
_ARCHIVES = (".tar", ".zip")


class _Archive:
    """The members of one archive, read on access by any thread."""

    def __init__(self, path: Path) -> None:
        """Reads the list of members. Raises RowFault for a file that is no archive of tar or zip."""
        self._path, self._lock = path, threading.Lock()
        self._zip: zipfile.ZipFile | None = None
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                if path.suffix.lower() == ".zip":
                    self._zip = zipfile.ZipFile(os.fdopen(open_regular(path), "rb"))
                    self._places = {one.filename: (0, one.file_size) for one in self._zip.infolist()}
                else:
                    self._places = dict(_list_tar(file))
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise RowFault(f"damaged archive: {make_printable(str(error))}; write it again", "", path.name) from error

    def read(self, name: str, most: int) -> bytes:
        """Returns a member's bytes; raises FileNotFoundError, and RowFault for one of more than `most` bytes."""
        name = next((one for one in _list_spellings(name) if one in self._places), name)
        if name not in self._places:
            raise FileNotFoundError(f"no such member in {self._path.name}")
        start, length = self._places[name]
        if length > most:
            raise RowFault(f"longer than {most:,} bytes")
        with self._lock:
            if self._zip is None:
                with os.fdopen(open_regular(self._path), "rb") as file:
                    file.seek(start)
                    return file.read(length)
            try:
                with self._zip.open(name) as member:
                    content = member.read(most + 1)
            except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
                raise RowFault(f"damaged or encrypted: {make_printable(str(error))}") from error
        if len(content) > most:
            raise RowFault(f"longer than {most:,} bytes")
        return content


def _list_tar(file: object) -> Iterator[tuple[str, tuple[int, int]]]:
    with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedMember) as archive:  # type: ignore[call-overload]
        for number, member in enumerate(archive):
            if number >= MOST_MEMBERS:
                raise ValueError(f"more than {MOST_MEMBERS:,} members")
            if member.isreg() and not member.issparse():
                yield member.name.removeprefix("./"), (member.offset_data, member.size)
            archive.members.clear()  # the library keeps all it has seen


class ImagePlaces:
    """Where the images of a source are looked for."""

    def __init__(self, bases: Sequence[Path], watched: Sequence[Path]) -> None:
        """`bases` are the folders or archives that paths are relative to, in this order; all is inside `watched`."""
        self._bases = tuple(dict.fromkeys(bases))
        self._watched = tuple(Path(os.path.realpath(one)) for one in watched)
        self._archives: dict[Path, _Archive] = {}
        self._inside: dict[Path, bool] = {}  # whether a folder is in what is watched
        self._lock = threading.Lock()

    def read(self, given: str, most: int = MOST_IMAGE_BYTES) -> bytes:
        """Returns the bytes of the image at a path. Raises RowFault that says why it cannot be read."""
        if "\0" in given or len(given) > 4096:
            raise RowFault("no file can have this name; correct the path")
        name = given
        if name.lower().startswith("file://"):
            name = unquote(name[len("file://") :]).removeprefix("localhost")
        elif _ADDRESS.match(name):
            raise RowFault("an address; images are not fetched from the web: download it and name the file")
        reason = "No such file"
        outside = False
        for spelling in _list_spellings(name):
            for base in self._bases:
                path = Path(os.path.normpath(base / spelling))
                if not self._is_watched(path):
                    outside = outside or os.path.lexists(path)
                    continue
                for ending in ("",) if path.suffix else ("", *_ENDINGS):
                    try:
                        return self._read_path(path.with_name(path.name + ending), most)
                    except (FileNotFoundError, NotADirectoryError):
                        continue
                    except OSError as error:
                        reason = explain_os_error(error)
        if outside and reason == "No such file":
            roots = " and ".join(str(one) for one in dict.fromkeys(self._watched))
            raise RowFault(f"outside {roots}; only what is in there is watched: copy it there")
        looked = ", ".join(str(one) for one in self._bases)
        raise RowFault(f"{make_printable(reason)}, relative to {looked}; correct the path, or set `images`")

    def _read_path(self, path: Path, most: int) -> bytes:
        try:
            return read_regular(path, most)
        except (FileNotFoundError, NotADirectoryError):
            for parent in path.parents:
                if is_archive(parent):
                    return self._open_archive(parent).read(path.relative_to(parent).as_posix(), most)
            raise

    def _open_archive(self, path: Path) -> _Archive:
        with self._lock:
            if path not in self._archives:
                self._archives[path] = _Archive(path)
            return self._archives[path]

    def _is_watched(self, path: Path) -> bool:
        """Whether DVC sees a change of the file: it follows links to files, but not to folders.

        So the image may be a link to anywhere, as in a snapshot of the hub, but the folder that it is in must be in
        what is watched, links followed.
        """
        inside = self._inside.get(path.parent)
        if inside is None:
            parent = Path(os.path.realpath(path.parent))
            inside = any(parent.is_relative_to(one) for one in self._watched)
            if len(self._inside) >= MOST_FOLDERS:
                self._inside.clear()
            self._inside[path.parent] = inside
        return inside or path in self._watched


def is_archive(path: Path) -> bool:
    """Returns whether `path` is an archive that images are read from."""
    return path.suffix.lower() in _ARCHIVES and path.is_file()


def _list_spellings(name: str) -> list[str]:
    """Returns `name` as it is, then as Windows, and in both forms that Unicode has for letters with accents."""
    found = [name]
    if "\\" in name:
        found.append((name[2:] if _DRIVE.match(name) else name).replace("\\", "/"))
    for form in ("NFC", "NFD"):
        found += [unicodedata.normalize(form, one) for one in found[:2]]  # type: ignore[arg-type]
    return list(dict.fromkeys(found))


def shorten_value(value: object) -> str:
    """Returns a value for a reject: one line, its middle left out."""
    return make_printable(value if isinstance(value, str) and len(value) <= 120 else abbreviate(value))

"""Keeps rows in temporary files while they are distributed over the splits, so that memory does not grow with them."""

import json
import os
import sqlite3
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.corpora.source import Canonical

CACHE_KIB = 32 * 1024  # of the database, in memory
_TABLES = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, place INTEGER, kind TEXT, split TEXT, text TEXT NOT NULL
);
CREATE TABLE images (sha256 TEXT PRIMARY KEY, start INTEGER, length INTEGER) WITHOUT ROWID;
CREATE TABLE owners (key TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE shown (split TEXT, sha256 TEXT, PRIMARY KEY (split, sha256)) WITHOUT ROWID;
"""


class RowSpool:
    """Rows by their order, images by their sha256, in files without a name that are gone when the process ends.

    Texts and places are in a database, images in a file of their own, each once.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` exists and has room for all rows and images."""
        self._images = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the spool
        self._end = 0
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        # one transaction that is never committed: pages go to the file when the cache is full
        self._rows = sqlite3.connect(name, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._rows.execute(f"PRAGMA {setting}")
        self._rows.executescript(f"BEGIN;{_TABLES}")
        Path(name).unlink()

    def holds(self, name: str) -> bool:
        """Whether a row has this id."""
        return self._rows.execute("SELECT 1 FROM rows WHERE id = ?", (name,)).fetchone() is not None

    def put(self, row: Canonical, order: int = 0) -> int:
        """Keeps a row of another id than those before; returns its number. Rows are ordered by `order`, then number."""
        for image, name in zip(row["images"], row["image_sha256"], strict=True):
            place = (name, self._end, len(image["bytes"]))
            if self._rows.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", place).rowcount:
                self._images.seek(self._end)
                self._images.write(image["bytes"])
                self._end += len(image["bytes"])
        bare = row | {"images": [image | {"bytes": None} for image in row["images"]]}
        values = (row["id"], order, row["kind"], json.dumps(bare))
        insert = "INSERT INTO rows (id, place, kind, text) VALUES (?, ?, ?, ?)"
        number = self._rows.execute(insert, values).lastrowid
        assert number is not None
        return number

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT count(*) FROM rows").fetchone()[0])

    def iter_rows(self) -> Iterator[tuple[int, Canonical]]:
        """Yields number and row in order, without the bytes of images."""
        for number in self._list_numbers("ORDER BY place, number"):
            yield number, self._read_row(number)

    def _list_numbers(self, which: str, values: Sequence[str] = ()) -> "array[int]":
        return array("q", (number for (number,) in self._rows.execute(f"SELECT number FROM rows {which}", values)))

    def _read_row(self, number: int) -> Canonical:
        (text,) = self._rows.execute("SELECT text FROM rows WHERE number = ?", (number,)).fetchone()
        row: Canonical = json.loads(text)
        return row

    def find_owners(self, keys: Sequence[str]) -> set[str]:
        """Returns the splits that own one of these images or ids."""
        marks = ", ".join("?" * len(keys))
        return {split for (split,) in self._rows.execute(f"SELECT split FROM owners WHERE key IN ({marks})", keys)}

    def own(self, split: str, keys: Sequence[str]) -> None:
        """Makes `split` the owner of these images or ids."""
        self._rows.executemany("INSERT OR REPLACE INTO owners VALUES (?, ?)", ((key, split) for key in keys))

    def assign(self, number: int, split: str, messages: list[dict[str, str]]) -> None:
        """Puts a row with these messages into a split."""
        row = self._read_row(number) | {"messages": messages}
        self._rows.execute("UPDATE rows SET split = ?, text = ? WHERE number = ?", (split, json.dumps(row), number))
        shown = ((split, name) for name in row["image_sha256"])
        self._rows.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?)", shown)

    def count_images(self, split: str) -> int:
        """Returns the number of different images in a split."""
        return int(self._rows.execute("SELECT count(*) FROM shown WHERE split = ?", (split,)).fetchone()[0])

    def count_kinds(self, split: str) -> dict[str, int]:
        """Returns the number of rows of each kind in a split."""
        return dict(self._rows.execute("SELECT kind, count(*) FROM rows WHERE split = ? GROUP BY kind", (split,)))

    def iter_by_id(self) -> Iterator[Canonical]:
        """Yields the rows of all splits by id, without the bytes of images."""
        return map(self._read_row, self._list_numbers("WHERE split IS NOT NULL ORDER BY id"))

    def iter_split(self, split: str) -> Iterator[Canonical]:
        """Yields the rows of a split in order, with the bytes of their images."""
        for number in self._list_numbers("WHERE split = ? ORDER BY place, number", [split]):
            row = self._read_row(number)
            images = zip(row["images"], row["image_sha256"], strict=True)
            yield row | {"images": [image | {"bytes": self._read_image(name)} for image, name in images]}

    def _read_image(self, name: str) -> bytes:
        start, length = self._rows.execute("SELECT start, length FROM images WHERE sha256 = ?", (name,)).fetchone()
        self._images.seek(start)
        return self._images.read(length)

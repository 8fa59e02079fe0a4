"""Keeps rows in temporary files while they are distributed over the splits, so that memory does not grow with them."""

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.corpora.print_table import PrintTable
from stages.corpora.prints import ImagePrint
from stages.corpora.rows import hash_question, join_asked
from stages.corpora.source import Canonical

CACHE_KIB = 16 * 1024  # of the database, in memory
BLOCK = 1000  # rows whose numbers are read at a time
_TABLES = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, place INTEGER NOT NULL, kind TEXT, source INTEGER, target TEXT,
    file TEXT, line INTEGER, keys TEXT, split TEXT, whole INTEGER, rejected INTEGER NOT NULL DEFAULT 0,
    question TEXT
);
CREATE INDEX rows_by_id ON rows (id, place, number);
CREATE TABLE texts (number INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE images (sha256 TEXT PRIMARY KEY, start INTEGER, length INTEGER) WITHOUT ROWID;
CREATE TABLE repeats (id TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID;
CREATE TABLE owners (key TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE shown (split TEXT, sha256 TEXT, number INTEGER, PRIMARY KEY (split, sha256)) WITHOUT ROWID;
"""
_ORDER = "place, id, number"
_BY_ORDER = f"CREATE INDEX IF NOT EXISTS rows_by_order ON rows ({_ORDER})"
_BY_SPLIT = f"CREATE INDEX IF NOT EXISTS rows_by_split ON rows (split, {_ORDER})"


class Origin(NamedTuple):
    """Where a row is from, and the split that it was given."""

    source: int = 0  # place in `questions.sources`
    target: str | None = None
    file: str = ""
    line: int = -1


class SpooledRow(NamedTuple):
    """A row without its texts."""

    number: int
    id: str
    keys: list[str]  # its images; without an image the hash of its question
    origin: Origin
    shows: bool  # whether it has an image


class RepeatedQuestion(NamedTuple):
    """A question without an image that is in a split for training and in a held-out one."""

    text: str
    id: str
    split: str  # held out
    held_out_id: str


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
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}", "temp_store = FILE"):
            self._rows.execute(f"PRAGMA {setting}")
        self._rows.executescript(f"BEGIN;{_TABLES}")
        Path(name).unlink()
        self.prints = PrintTable(self._rows)
        self.targets: set[tuple[int, str | None]] = set()  # which source has rows of which target, rejects included

    def holds(self, name: str) -> bool:
        """Whether a row has this id."""
        return self._rows.execute("SELECT 1 FROM rows WHERE id = ? LIMIT 1", (name,)).fetchone() is not None

    def put(
        self, row: Canonical, order: int | None = None, origin: Origin | None = None, prints: Sequence[ImagePrint] = ()
    ) -> int:
        """Keeps a row; returns its number. Rows are ordered by `order` (by default their number), id and number.

        `prints` are those of its images, or none.
        """
        for place, (image, name) in enumerate(zip(row["images"], row["image_sha256"], strict=True)):
            found = (name, self._end, len(image["bytes"]))
            if self._rows.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", found).rowcount:
                self._images.seek(self._end)
                self._images.write(image["bytes"])
                self._end += len(image["bytes"])
                if prints:
                    self.prints.put(name, prints[place])
        bare = row | {"images": [image | {"bytes": None} for image in row["images"]]}
        number = self._rows.execute("INSERT INTO texts (text) VALUES (?)", (json.dumps(bare),)).lastrowid
        assert number is not None
        source, target, file, line = origin or Origin()
        self.targets.add((source, target))
        values = (number, row["id"], number if order is None else order, row["kind"], source, target, file, line)
        insert = "INSERT INTO rows (number, id, place, kind, source, target, file, line, keys, question) VALUES "
        asked = None if row["images"] else hash_question(row)
        self._rows.execute(f"{insert}({', '.join('?' * 10)})", (*values, " ".join(row["image_sha256"]), asked))
        return number

    def number_repeated(self, name: str) -> str:
        """Returns an id that no row has so far: `name`, or with a number behind it if rows before have it."""
        if not self.holds(name):
            return name
        insert = "INSERT INTO repeats VALUES (?, 2) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
        while True:
            (count,) = self._rows.execute(insert, (name,)).fetchone()
            if not self.holds(f"{name}#{count}"):
                return f"{name}#{count}"

    def rename_repeated(self) -> int:
        """Gives all rows but the first of each id a number behind it; the first is that of the lowest order.

        Returns the number of rows with a new id.
        """
        repeated = "SELECT id FROM rows WHERE id > ? GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1"
        name, count = "", 0
        while found := self._rows.execute(repeated, (name,)).fetchone():
            (name,) = found
            numbers = self._iter_numbers("id = ?", [name], "place, number")
            next(numbers)
            suffix = 1
            for number in numbers:
                suffix += 1
                while self.holds(f"{name}#{suffix}"):
                    suffix += 1
                self._rows.execute("UPDATE rows SET id = ? WHERE number = ?", (f"{name}#{suffix}", number))
                count += 1
        return count

    def __len__(self) -> int:
        return self._count("SELECT count(*) FROM rows")

    def _count(self, query: str, *values: str) -> int:
        return int(self._rows.execute(query, values).fetchone()[0])

    def iter_open(self, targets: Sequence[str | None]) -> Iterator[SpooledRow]:
        """Yields in order the rows with these targets that are in no split and not rejected."""
        self._rows.execute(_BY_ORDER)
        marks = ", ".join("?" * len(targets))
        which = f"split IS NULL AND NOT rejected AND coalesce(target, '') IN ({marks})"
        query = "SELECT number, id, keys, question, source, target, file, line FROM rows WHERE number = ?"
        for place in self._iter_numbers(which, [target or "" for target in targets]):
            number, name, keys, asked, *origin = self._rows.execute(query, (place,)).fetchone()
            yield SpooledRow(number, name, keys.split() or [asked], Origin(*origin), bool(keys))

    def iter_rows(self) -> Iterator[tuple[int, Canonical]]:
        """Yields number and row in order, without the bytes of images."""
        self._rows.execute(_BY_ORDER)
        for number in self._iter_numbers("1", []):
            yield number, self._read_row(number)

    def _iter_numbers(self, which: str, values: Sequence[str], order: str = _ORDER) -> Iterator[int]:
        """Yields the numbers of rows, a block at a time: those that were read may change meanwhile."""
        behind: tuple[object, ...] = ()
        while True:
            marks = f"AND ({order}) > ({', '.join('?' * len(behind))})" if behind else ""
            query = f"SELECT {order} FROM rows WHERE {which} {marks} ORDER BY {order} LIMIT {BLOCK}"
            found = self._rows.execute(query, (*values, *behind)).fetchall()
            if not found:
                return
            yield from (row[-1] for row in found)
            behind = found[-1]

    def _read_row(self, number: int) -> Canonical:
        query = "SELECT id, whole, text FROM rows JOIN texts USING (number) WHERE number = ?"
        name, whole, text = self._rows.execute(query, (number,)).fetchone()
        row: Canonical = json.loads(text)
        if whole == 0 and row["messages"][-1]["role"] == "assistant":
            row["messages"].pop()
        return row | {"id": name}

    def find_owners(self, keys: Sequence[str]) -> dict[str, str]:
        """Returns the split that owns each of these images or ids, without those that no split owns."""
        marks = ", ".join("?" * len(keys))
        return dict(self._rows.execute(f"SELECT key, split FROM owners WHERE key IN ({marks})", keys))

    def own(self, split: str, keys: Sequence[str]) -> None:
        """Makes `split` the owner of these images or ids."""
        self._rows.executemany("INSERT OR REPLACE INTO owners VALUES (?, ?)", ((key, split) for key in keys))

    def assign(self, number: int, split: str, with_target: bool = True) -> None:
        """Puts a row into a split, with or without the assistant's turn at its end."""
        self._rows.execute("UPDATE rows SET split = ?, whole = ? WHERE number = ?", (split, with_target, number))
        (keys,) = self._rows.execute("SELECT keys FROM rows WHERE number = ?", (number,)).fetchone()
        shown = ((split, name, number) for name in keys.split())
        self._rows.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?, ?)", shown)

    def reject(self, number: int) -> None:
        """Takes a row out of all draws."""
        self._rows.execute("UPDATE rows SET rejected = 1 WHERE number = ?", (number,))

    def clear(self, splits: Sequence[str]) -> None:
        """Takes all rows and images out of these splits."""
        marks = ", ".join("?" * len(splits))
        self._rows.execute(f"UPDATE rows SET split = NULL, whole = NULL WHERE split IN ({marks})", splits)
        for table in ("shown", "owners"):
            self._rows.execute(f"DELETE FROM {table} WHERE split IN ({marks})", splits)

    def count_images(self, split: str) -> int:
        """Returns the number of different images in a split."""
        return self._count("SELECT count(*) FROM shown WHERE split = ?", split)

    def count_kinds(self, split: str) -> dict[str, int]:
        """Returns the number of rows of each kind in a split."""
        return dict(self._rows.execute("SELECT kind, count(*) FROM rows WHERE split = ? GROUP BY kind", (split,)))

    def count_sources(self) -> dict[tuple[int, str | None], int]:
        """Returns the number of rows by source and split; None is for rows that are in no split and not rejected."""
        query = "SELECT source, split, count(*) FROM rows WHERE NOT rejected GROUP BY source, split"
        return {(source, split): count for source, split, count in self._rows.execute(query)}

    def iter_repeated_questions(self, learned: Sequence[str], held_out: Sequence[str]) -> Iterator[RepeatedQuestion]:
        """Yields each question without an image that splits of both kinds have, with the first row of each side."""
        self._rows.execute("CREATE INDEX IF NOT EXISTS rows_by_question ON rows (question) WHERE question IS NOT NULL")
        marks = [", ".join("?" * len(splits)) for splits in (learned, held_out)]
        query = (
            "SELECT min(own.number), min(other.number) FROM rows AS own JOIN rows AS other USING (question) "
            f"WHERE own.split IN ({marks[0]}) AND other.split IN ({marks[1]}) GROUP BY question ORDER BY 1"
        )
        for own, other in self._rows.cursor().execute(query, (*learned, *held_out)):
            (split,) = self._rows.execute("SELECT split FROM rows WHERE number = ?", (other,)).fetchone()
            row = self._read_row(own)
            yield RepeatedQuestion(join_asked(row["messages"]), row["id"], split, self._read_row(other)["id"])

    def iter_by_id(self) -> Iterator[Canonical]:
        """Yields the rows of all splits by id, without the bytes of images."""
        return map(self._read_row, self._iter_numbers("split IS NOT NULL", [], "id, place, number"))

    def iter_split(self, split: str) -> Iterator[Canonical]:
        """Yields the rows of a split in order, with the bytes of their images."""
        self._rows.execute(_BY_SPLIT)
        for number in self._iter_numbers("split = ?", [split]):
            row = self._read_row(number)
            images = zip(row["images"], row["image_sha256"], strict=True)
            yield row | {"images": [image | {"bytes": self._read_image(name)} for image, name in images]}

    def _read_image(self, name: str) -> bytes:
        start, length = self._rows.execute("SELECT start, length FROM images WHERE sha256 = ?", (name,)).fetchone()
        self._images.seek(start)
        return self._images.read(length)

"""Finds the images for training that are nearly images of the held-out splits, by their prints."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stages.corpora.hash_index import HashIndex
from stages.corpora.prints import ImagePrint

MOST_BITS = 6  # in which the hashes of near-duplicates differ, of 64
MOST_DIFFERENCE = 8.0  # root mean square over a thumbnail, of 255
BLOCK = 1000  # hashes or thumbnails that are compared at a time
_TABLES = """
CREATE TABLE prints (sha256 TEXT, bits INTEGER, thumbnail BLOB, side TEXT);
CREATE TABLE near (
    sha256 TEXT PRIMARY KEY, other TEXT, differing INTEGER, difference REAL, other_split TEXT
) WITHOUT ROWID;
CREATE TABLE near_held_out (sha256 TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
"""
_LEARNED, _HELD_OUT = "learned", "held out"


class NearDuplicate(NamedTuple):
    """An image for training, and the image of a held-out split that is most like it."""

    sha256: str
    other: str
    bits: int  # that differ, of 64
    difference: float  # root mean square over the thumbnails, of 255
    split: str  # of `other`


class PrintTable:
    """The prints of images, in the database of the spool."""

    def __init__(self, rows: sqlite3.Connection) -> None:
        self._rows = rows
        for statement in filter(str.strip, _TABLES.split(";")):
            rows.execute(statement)

    def put(self, name: str, given: ImagePrint) -> None:
        """Keeps the print of the image with this sha256."""
        values = (name, _to_signed(given.bits), given.thumbnail)
        self._rows.execute("INSERT INTO prints (sha256, bits, thumbnail) VALUES (?, ?, ?)", values)

    def search(self, learned: Sequence[str] | None, held_out: Sequence[str]) -> int:
        """Finds the images of the splits `learned` that are nearly images of the splits `held_out`.

        None stands for all images that are in no split of `held_out`. Returns the number found; it replaces what an
        earlier search found. Hashes of the held-out images are in memory, all else is read in blocks.
        """
        self._rows.execute("DELETE FROM near")
        self._rows.execute("DELETE FROM near_held_out")
        self._rows.execute("UPDATE prints SET side = ?", (_LEARNED if learned is None else None,))
        for side, splits in ((_LEARNED, learned or ()), (_HELD_OUT, held_out)):
            marks = ", ".join("?" * len(splits))
            which = f"sha256 IN (SELECT sha256 FROM shown WHERE split IN ({marks}))"
            self._rows.execute(f"UPDATE prints SET side = ? WHERE {which}", (side, *splits))
        self._rows.execute("CREATE INDEX IF NOT EXISTS prints_by_bits ON prints (side, bits)")
        held = np.concatenate([np.zeros(0, np.uint64), *self._iter_hashes(_HELD_OUT)])
        if len(held):
            index = HashIndex(held, MOST_BITS)
            for hashes in self._iter_hashes(_LEARNED):
                for left, right in index.iter_pairs(hashes):
                    for one, other in zip(hashes[left].tolist(), held[right].tolist(), strict=True):
                        self._compare(one, other)
        return int(self._rows.execute("SELECT count(*) FROM near").fetchone()[0])

    def _iter_hashes(self, side: str) -> Iterator[np.ndarray]:
        """Yields the different hashes of a side in blocks, uint64."""
        first = -(1 << 63)
        query = "SELECT DISTINCT bits FROM prints WHERE side = ? AND bits >= ? ORDER BY bits LIMIT ?"
        while found := [bits for (bits,) in self._rows.execute(query, (side, first, BLOCK))]:
            yield np.array(found, np.int64).view(np.uint64)
            if found[-1] == (1 << 63) - 1:
                return
            first = found[-1] + 1

    def _iter_thumbnails(self, side: str, bits: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yields names and thumbnails (float64, [n, values]) of the images with a hash, in blocks."""
        query = "SELECT sha256, thumbnail FROM prints WHERE side = ? AND bits = ?"
        asked = self._rows.cursor().execute(query, (side, _to_signed(bits)))
        while found := asked.fetchmany(BLOCK):
            pixels = [np.frombuffer(thumbnail, np.uint8) for _, thumbnail in found]
            yield [name for name, _ in found], np.stack(pixels).astype(np.float64)

    def _compare(self, learned: int, held_out: int) -> None:
        """Keeps the near-duplicates among the images with these two hashes."""
        bits = (learned ^ held_out).bit_count()
        for names, pixels in self._iter_thumbnails(_LEARNED, learned):
            for others, other_pixels in self._iter_thumbnails(_HELD_OUT, held_out):
                # exact: whole numbers below 2**53
                squares = (pixels**2).sum(1)[:, None] + (other_pixels**2).sum(1) - 2 * pixels @ other_pixels.T
                differences = np.sqrt(squares / pixels.shape[1])
                close = differences <= MOST_DIFFERENCE
                nearest = differences.argmin(1)
                for place in np.flatnonzero(close.any(1)).tolist():
                    other = others[nearest[place]]
                    self._keep(names[place], other, bits, float(differences[place, nearest[place]]))
                for place in np.flatnonzero(close.any(0)).tolist():
                    insert = "INSERT OR IGNORE INTO near_held_out VALUES (?, ?)"
                    self._rows.execute(insert, (others[place], self._find_split(others[place])))

    def _find_split(self, name: str) -> str:
        return str(self._rows.execute("SELECT split FROM owners WHERE key = ?", (name,)).fetchone()[0])

    def _keep(self, name: str, other: str, bits: int, difference: float) -> None:
        """Keeps a pair unless a nearer one of the image is known; of equally near ones the first by sha256."""
        query = "SELECT difference, differing, other FROM near WHERE sha256 = ?"
        known = self._rows.execute(query, (name,)).fetchone()
        if known is None or (difference, bits, other) < known:
            values = (name, other, bits, difference, self._find_split(other))
            self._rows.execute("INSERT OR REPLACE INTO near VALUES (?, ?, ?, ?, ?)", values)

    def find_near(self, names: Sequence[str]) -> NearDuplicate | None:
        """Returns what the last search found of the first of these images that is a near-duplicate."""
        query = "SELECT * FROM near WHERE sha256 = ?"
        found = (self._rows.execute(query, (name,)).fetchone() for name in names)
        return next((NearDuplicate(*row) for row in found if row is not None), None)

    def iter_near(self) -> Iterator[tuple[NearDuplicate, str, str]]:
        """Yields the near-duplicates, the nearest first, each with a question of either image.

        Without the id of a question that was dropped.
        """
        query = (
            "SELECT near.*, coalesce(rows.id, ''), others.id FROM near "
            "LEFT JOIN shown ON shown.sha256 = near.sha256 AND shown.split IN ('warm_start', 'imitation') "
            "LEFT JOIN rows USING (number) "
            "JOIN shown AS there ON there.sha256 = near.other AND there.split = near.other_split "
            "JOIN rows AS others ON others.number = there.number "
            "ORDER BY near.difference, near.differing, near.sha256"
        )
        for *pair, name, other in self._rows.cursor().execute(query):
            yield NearDuplicate(*pair), name, other

    def count_near(self) -> dict[str, int]:
        """Returns by held-out split the number of its images that have a near-duplicate for training."""
        return dict(self._rows.execute("SELECT split, count(*) FROM near_held_out GROUP BY split ORDER BY split"))


def _to_signed(bits: int) -> int:
    """SQLite's integers have a sign."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits

"""Where each stored answer lies: sorted arrays, 24 bytes an answer."""

from collections.abc import Sequence

import numpy as np

ABSENT = -1
_ROW_BITS = 32


class Index:
    """Finds answers by the first 16 bytes of their keys."""

    def __init__(self, digests: Sequence[np.ndarray]) -> None:
        """`digests[i]` are the keys of segment i as rows of two numbers; of equal keys the first segment's counts."""
        rows = [len(part) for part in digests]
        self.stored = sum(rows)  # duplicates included
        high = np.concatenate([part[:, 0] for part in digests]) if digests else np.empty(0, np.uint64)
        low = np.concatenate([part[:, 1] for part in digests]) if digests else np.empty(0, np.uint64)
        order = np.lexsort((low, high))  # stable: earlier segments stay first
        self._high, self._low = high[order], low[order]
        del high, low
        starts = [np.int64(segment << _ROW_BITS) for segment in range(len(rows))]
        parts = [start + np.arange(count, dtype=np.int64) for start, count in zip(starts, rows, strict=True)]
        places = np.concatenate(parts) if parts else np.empty(0, np.int64)
        del parts
        self._places = places[order]
        del places, order
        again = np.zeros(len(self._high), bool)
        again[1:] = (self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1])
        if again.any():
            self._high, self._low, self._places = self._high[~again], self._low[~again], self._places[~again]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, bytes."""
        return int(self._high.nbytes + self._low.nbytes + self._places.nbytes)

    def places(self, digests: np.ndarray) -> np.ndarray:
        """Where each of `digests` lies, for `segments_of` and `rows_of`; ABSENT where it is not stored."""
        found = np.full(len(digests), ABSENT, np.int64)
        if not len(self) or not len(digests):
            return found
        at = np.searchsorted(self._high, digests[:, 0])
        while True:
            inside = np.minimum(at, len(self) - 1)
            alike = (at < len(self)) & (self._high[inside] == digests[:, 0])
            same = alike & (self._low[inside] == digests[:, 1])
            found[same] = self._places[inside[same]]
            if not (alike & ~same & (found == ABSENT)).any():  # two keys with equal first halves: once in 1e9 stores
                return found
            at = at + (alike & ~same)

    def winners(self, segment: int, digests: np.ndarray, start: int = 0) -> np.ndarray:
        """Which rows of segment number `segment`, from row `start` on with the keys `digests`, are the ones that are served."""
        here = np.int64((segment << _ROW_BITS) + start) + np.arange(len(digests), dtype=np.int64)
        return np.asarray(self.places(digests) == here)

    def counts(self, segments: int) -> np.ndarray:
        """How many answers of each of the first `segments` segments are served."""
        return np.bincount(segments_of(self._places), minlength=segments)


def segments_of(places: np.ndarray) -> np.ndarray:
    """Numbers of the segments of places that are not ABSENT."""
    return places >> _ROW_BITS


def rows_of(places: np.ndarray) -> np.ndarray:
    """Rows within their segments of places that are not ABSENT."""
    return places & np.int64((1 << _ROW_BITS) - 1)

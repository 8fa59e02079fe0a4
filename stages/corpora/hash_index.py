"""Finds hashes of 64 bits that differ in few bits."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

BITS = 64
MOST_PAIRS = 1 << 20  # that are compared at a time: 24 MB


class HashIndex:
    """Hashes that are searched by their Hamming distance; the search is exact.

    Two hashes that differ in at most d bits are equal in one of d + 1 bands. So only hashes that share a band are
    compared.
    """

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        """`hashes` are uint64, [n]; `distance` is the largest number of bits in which a match differs, below 64."""
        self._hashes, self._distance = hashes, distance
        edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = []
        for start, end in pairwise(edges):
            values = self._cut(hashes, start, end)
            order = np.argsort(values, kind="stable")
            self._bands.append((start, end, values[order], order))

    def iter_pairs(self, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the matches block by block, each once: places in `hashes` (uint64) and in the index, int64."""
        for number, (start, end, values, order) in enumerate(self._bands):
            wanted = self._cut(hashes, start, end)
            first = np.searchsorted(values, wanted, "left")
            counts = np.searchsorted(values, wanted, "right") - first
            for block in _cut_blocks(counts):
                left = np.repeat(np.arange(block.start, block.stop), counts[block])
                before = np.cumsum(counts[block]) - counts[block]
                within = np.arange(len(left)) - np.repeat(before, counts[block])
                right = order[np.repeat(first[block], counts[block]) + within]
                differing = hashes[left] ^ self._hashes[right]
                close = np.bitwise_count(differing) <= self._distance
                for start_before, end_before, *_ in self._bands[:number]:  # found there already
                    close &= self._cut(differing, start_before, end_before) != 0
                if close.any():
                    yield left[close], right[close]

    @staticmethod
    def _cut(hashes: np.ndarray, start: int, end: int) -> np.ndarray:
        """Returns the bits from `start` up to `end`."""
        cut: np.ndarray = (hashes >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        return cut


def _cut_blocks(counts: np.ndarray) -> Iterator[slice]:
    """Yields slices with about MOST_PAIRS pairs each."""
    totals = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = totals[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(totals, done + MOST_PAIRS, "right")))
        yield slice(start, end)
        start = end

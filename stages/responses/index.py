"""Location of each stored answer: sorted arrays with 32 bytes per run of consecutive samples of a request.

The answers to one request are written together, so that 16 of them usually form one run: 2 bytes per answer. The worst
case, one answer per request, is 32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ABSENT = -1
_ROW_BITS = 32


@dataclass(frozen=True)
class Runs:
    """Rows of one segment, grouped into runs of consecutive samples.

    A row of `requests` holds two integers: half a sha256.
    """

    requests: np.ndarray  # [runs, 2]
    first: np.ndarray  # smallest sample
    count: np.ndarray
    row: np.ndarray  # of the smallest sample

    @classmethod
    def from_rows(cls, requests: np.ndarray, samples: np.ndarray) -> "Runs":
        """Returns the runs of a segment whose rows hold the answers `samples` of `requests`."""
        starts = np.ones(len(samples), bool)
        starts[1:] = (requests[1:] != requests[:-1]).any(axis=1) | (samples[1:] != samples[:-1] + 1)
        row = np.flatnonzero(starts)
        count = np.diff(np.append(row, len(samples)))
        return cls(requests[row], samples[row].astype(np.int32), count.astype(np.int32), row)


class Index:
    """Finds answers by request and sample; for duplicates, the answer in the first segment counts."""

    def __init__(self, segments: Sequence[Runs]) -> None:
        """`segments[i]` holds the runs of segment number i."""
        self.stored = sum(int(runs.count.sum()) for runs in segments)  # duplicates included
        self._high = _concatenate([runs.requests[:, 0] for runs in segments], np.uint64)
        self._low = _concatenate([runs.requests[:, 1] for runs in segments], np.uint64)
        self._first = _concatenate([runs.first for runs in segments], np.int32)
        self._count = _concatenate([runs.count for runs in segments], np.int32)
        self._place = _concatenate([np.int64(n << _ROW_BITS) + runs.row for n, runs in enumerate(segments)], np.int64)
        self._keep(np.lexsort((self._place, self._count, self._first, self._low, self._high)))
        twice = self._continues_run() & (self._first[1:] == self._first[:-1]) & (self._count[1:] == self._count[:-1])
        if twice.any():  # complete runs that another segment also has: two writers of one request, or an older copy
            self._keep(np.flatnonzero(np.append(True, ~twice)))
        overlap = self._continues_run() & (self._first[1:] < self._first[:-1] + self._count[:-1])
        if overlap.any():
            self._split(overlap)

    def _keep(self, places: np.ndarray) -> None:
        for name in ("_high", "_low", "_first", "_count", "_place"):
            setattr(self, name, getattr(self, name)[places])

    def _continues_run(self) -> np.ndarray:
        """Returns for each run except the first whether it has the same request as the run before."""
        return np.asarray((self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1]))

    def _split(self, overlap: np.ndarray) -> None:
        """Assigns each sample of overlapping runs to the first segment that has it."""
        request = np.append(0, np.cumsum(~self._continues_run()))  # number of the request of each run
        torn = np.isin(request, request[1:][overlap])
        pieces: list[tuple[int, int, int, int]] = []  # a run to copy the request from, first, count, place
        at = np.flatnonzero(torn)
        for members in np.split(at, np.flatnonzero(np.diff(request[at])) + 1):
            places: dict[int, int] = {}
            for run in sorted(members.tolist(), key=lambda run: int(self._place[run])):
                for offset in range(int(self._count[run])):
                    places.setdefault(int(self._first[run]) + offset, int(self._place[run]) + offset)
            for sample in sorted(places):
                run, first, count, place = pieces[-1] if pieces else (-1, 0, 0, 0)
                if run == members[0] and sample == first + count and places[sample] == place + count:
                    pieces[-1] = (run, first, count + 1, place)
                else:
                    pieces.append((int(members[0]), sample, 1, places[sample]))
        made = np.array(pieces, np.int64)
        whole = ~torn
        self._high = np.concatenate([self._high[whole], self._high[made[:, 0]]])
        self._low = np.concatenate([self._low[whole], self._low[made[:, 0]]])
        self._first = np.concatenate([self._first[whole], made[:, 1].astype(np.int32)])
        self._count = np.concatenate([self._count[whole], made[:, 2].astype(np.int32)])
        self._place = np.concatenate([self._place[whole], made[:, 3]])
        self._keep(np.lexsort((self._first, self._low, self._high)))

    def __len__(self) -> int:
        return int(self._count.sum())

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return sum(int(array.nbytes) for array in (self._high, self._low, self._first, self._count, self._place))

    def find_places(self, requests: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Returns the locations of answers, for `decode_segments` and `decode_rows`; ABSENT if an answer is not stored.

        `samples` has one row per request, of any length: the samples of that request to look up.
        """
        high, low = requests[:, :1], requests[:, 1:]
        # The last run that does not come after the sample, by bisection among the runs of one `high`: a hostile segment
        # may have thousands of runs of one request.
        start = np.broadcast_to(np.searchsorted(self._high, high, "left"), samples.shape)
        begin, end = start.copy(), np.broadcast_to(np.searchsorted(self._high, high, "right"), samples.shape).copy()
        while (open_ones := begin < end).any():
            middle = np.minimum((begin + end) // 2, len(self._high) - 1)
            before = (self._low[middle] < low) | ((self._low[middle] == low) & (self._first[middle] <= samples))
            begin = np.where(open_ones & before, middle + 1, begin)
            end = np.where(open_ones & ~before, middle, end)
        there = begin > start
        if not there.any():
            return np.full(samples.shape, ABSENT, np.int64)
        run = np.maximum(begin - 1, 0)
        offset = samples - self._first[run]
        inside = there & (self._low[run] == low) & (offset < self._count[run])
        return np.where(inside, self._place[run] + offset, ABSENT)

    def find_winners(self, segment: int, requests: np.ndarray, samples: np.ndarray, start: int = 0) -> np.ndarray:
        """Returns which rows of segment number `segment`, from row `start` on, are served."""
        here = np.int64((segment << _ROW_BITS) + start) + np.arange(len(samples), dtype=np.int64)
        return np.asarray(self.find_places(requests, samples[:, None])[:, 0] == here)

    def count_served(self, segments: int) -> np.ndarray:
        """Returns how many answers of each of the first `segments` segments are served."""
        return np.bincount(decode_segments(self._place), weights=self._count, minlength=segments).astype(np.int64)


def _concatenate(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, kind)


def decode_segments(places: np.ndarray) -> np.ndarray:
    """Returns the segment numbers of locations that are not ABSENT."""
    return places >> _ROW_BITS


def decode_rows(places: np.ndarray) -> np.ndarray:
    """Returns the rows within their segments of locations that are not ABSENT."""
    return places & np.int64((1 << _ROW_BITS) - 1)

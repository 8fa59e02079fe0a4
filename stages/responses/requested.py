"""The answers that a stage requests from the store: n per prompt, as keys; and the requests for missing ones."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from stages.responses.key import GenerationSpec
from stages.responses.store import Store

BLOCK_ANSWERS = 16_384  # answers processed at a time: 130 MB of the paper's longest answers


class PromptKeyParts(Protocol):
    """The parts of a prompt that determine its key."""

    @property
    def id(self) -> str: ...  # for messages and provenance; not part of the key
    @property
    def messages(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def image_sha256(self) -> Sequence[str]: ...


class PromptLike(PromptKeyParts, Protocol):
    """A prompt, for example a `Question`."""

    @property
    def images(self) -> Sequence[bytes]: ...


class MissingRange(NamedTuple):
    """Consecutive samples of one prompt that are missing from the store."""

    prompt: int
    first: int
    answers: int


@dataclass(frozen=True)
class RequestedAnswers:
    """n answers to each prompt: 32 bytes and an id per prompt."""

    ids: list[str]
    request_keys: np.ndarray  # one row of 32 bytes per prompt
    n: int

    @classmethod
    def from_prompts(cls, asked: GenerationSpec, prompts: Iterable[PromptKeyParts], n: int) -> "RequestedAnswers":
        """Computes the keys of `prompts`, which is iterated once; images are not needed."""
        ids: list[str] = []
        keys = bytearray()
        for prompt in prompts:
            ids.append(prompt.id)
            keys += bytes.fromhex(asked.request_key(prompt.messages, prompt.image_sha256))
        return cls(ids, np.frombuffer(bytes(keys), np.uint8).reshape(-1, 32), n)

    def __len__(self) -> int:
        return len(self.ids)

    def request_key(self, prompt: int) -> str:
        """Returns the key of a prompt's request, as hex."""
        return self.request_keys[prompt].tobytes().hex()

    def iter_blocks(self, answers: int = BLOCK_ANSWERS) -> Iterator[range]:
        """Yields ranges of prompts with at most `answers` answers (at least one prompt)."""
        step = max(1, answers // self.n)
        for start in range(0, len(self), step):
            yield range(start, min(start + step, len(self)))

    def encode_requests(self, prompts: range) -> np.ndarray:
        """Returns the first halves of the request keys, in the form used by a store's index."""
        halves = np.ascontiguousarray(self.request_keys[prompts.start : prompts.stop, :16])
        return halves.view(">u8").astype(np.uint64)

    @property
    def samples(self) -> np.ndarray:
        """Sample numbers, as one row."""
        return np.arange(self.n, dtype=np.int64)[None, :]

    def find_stored(self, store: Store) -> np.ndarray:
        """Returns which answers are stored: one row per prompt, one column per sample."""
        parts = [
            store.holds(self.encode_requests(block), np.repeat(self.samples, len(block), axis=0))
            for block in self.iter_blocks()
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.n), bool)

    def read_rows(self, store: Store, prompts: range, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """Returns `columns` of the stored answers to `prompts`, ordered by prompt and sample, and which are stored."""
        return store.read_rows(self.encode_requests(prompts), np.repeat(self.samples, len(prompts), axis=0), columns)

    def find_missing(self, stored: np.ndarray, last: Collection[str] = ()) -> Iterator[MissingRange]:
        """Yields missing ranges in the order of the prompts; prompts whose request keys are in `last` come last.

        Prompts with equal keys are requested once.
        """
        seen: set[bytes] = set()
        postponed: list[int] = []
        for prompt in np.flatnonzero(~stored.all(axis=1)).tolist():
            key = self.request_keys[prompt].tobytes()
            if key not in seen:
                seen.add(key)
                if last and key.hex() in last:
                    postponed.append(prompt)
                else:
                    yield from find_missing_ranges(prompt, stored[prompt])
        for prompt in postponed:
            yield from find_missing_ranges(prompt, stored[prompt])


def find_missing_ranges(prompt: int, stored: np.ndarray) -> Iterator[MissingRange]:
    """Yields the runs of consecutive samples of one prompt that are not stored."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], stored, [True]]).astype(np.int8)))
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield MissingRange(prompt, first, end - first)

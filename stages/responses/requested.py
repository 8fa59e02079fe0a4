"""What a stage wants from the store: n answers to each of many prompts, as keys; and the requests for those it
lacks.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from stages.responses.key import GenerationSpec
from stages.responses.store import Store

BLOCK_ANSWERS = 16_384  # looked up, or read, at a time: 130 MB of the paper's longest answers


class PromptKeyParts(Protocol):
    """What a key is made of."""

    @property
    def id(self) -> str: ...  # for messages and provenance, no part of the key
    @property
    def messages(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def image_sha256(self) -> Sequence[str]: ...


class PromptLike(PromptKeyParts, Protocol):
    """What is asked; a `Question` is one."""

    @property
    def images(self) -> Sequence[bytes]: ...


class MissingRange(NamedTuple):
    """Neighbouring samples of one prompt that the store lacks."""

    prompt: int
    first: int
    answers: int


@dataclass(frozen=True)
class RequestedAnswers:
    """n answers to each prompt: 32 bytes and an id a prompt."""

    ids: list[str]
    request_keys: np.ndarray  # one row of 32 bytes a prompt
    n: int

    @classmethod
    def from_prompts(cls, asked: GenerationSpec, prompts: Iterable[PromptKeyParts], n: int) -> "RequestedAnswers":
        """Keys of `prompts`, which are read once; no image is needed for that."""
        ids: list[str] = []
        keys = bytearray()
        for prompt in prompts:
            ids.append(prompt.id)
            keys += bytes.fromhex(asked.request_key(prompt.messages, prompt.image_sha256))
        return cls(ids, np.frombuffer(bytes(keys), np.uint8).reshape(-1, 32), n)

    def __len__(self) -> int:
        return len(self.ids)

    def request_key(self, prompt: int) -> str:
        """Key of what is asked, as hex."""
        return self.request_keys[prompt].tobytes().hex()

    def iter_blocks(self) -> Iterator[range]:
        """Ranges of prompts with at most BLOCK_ANSWERS answers (one prompt at least)."""
        step = max(1, BLOCK_ANSWERS // self.n)
        for start in range(0, len(self), step):
            yield range(start, min(start + step, len(self)))

    def encode_requests(self, prompts: range) -> np.ndarray:
        """First halves of the request keys, as the index of a store takes them."""
        halves = np.ascontiguousarray(self.request_keys[prompts.start : prompts.stop, :16])
        return halves.view(">u8").astype(np.uint64)

    @property
    def samples(self) -> np.ndarray:
        """Numbers of the samples, as one row."""
        return np.arange(self.n, dtype=np.int64)[None, :]

    def find_stored(self, store: Store) -> np.ndarray:
        """Which answers the store has: one row a prompt, one column a sample."""
        parts = [
            store.holds(self.encode_requests(block), np.repeat(self.samples, len(block), axis=0))
            for block in self.iter_blocks()
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.n), bool)

    def read_rows(self, store: Store, prompts: range, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """`columns` of the stored answers to `prompts`, in their order and that of the samples, and which are
        stored.
        """
        return store.read_rows(self.encode_requests(prompts), np.repeat(self.samples, len(prompts), axis=0), columns)

    def find_missing(self, stored: np.ndarray, last: Collection[str] = ()) -> Iterator[MissingRange]:
        """What is lacking, in the order of the prompts; those whose request keys are in `last` come after the others.

        Prompts that ask the same are asked once.
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
    """Runs of neighbouring samples of one prompt that are not stored."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], stored, [True]]).astype(np.int8)))
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield MissingRange(prompt, first, end - first)

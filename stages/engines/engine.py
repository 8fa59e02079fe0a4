"""What every engine takes and gives. Stages and the response store know these types and no engine's own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stages.job.blocks import Sampling


class RequestError(ValueError):
    """A request that no engine can answer, such as a prompt longer than the model's context; the message names it."""


@dataclass(frozen=True)
class Request:
    """One prompt and how many answers to it; `<image>` markers in the messages stand for `images` in order."""

    name: str  # for messages: the id of the question
    messages: Sequence[Mapping[str, str]]
    images: Sequence[bytes]  # as they came, never decoded and encoded again
    sampling: Sampling
    n: int = 1
    seed: int = 0  # answer i is drawn with seed + i
    log_probs: bool = False  # whether answers say how likely each token was


@dataclass(frozen=True)
class Answer:
    """One finished answer."""

    index: int  # 0 .. n - 1 within its request
    text: str  # without special tokens
    token_ids: tuple[int, ...]  # as sampled, with the token that ended the turn
    finish_reason: str  # "stop", "length" (cut), anything else is a failure
    prompt_tokens: int
    completion_tokens: int
    log_probs: tuple[float, ...] | None = None  # of token_ids, before temperature, top-p and the like; where asked for

    @property
    def failed(self) -> bool:
        """True when the engine gave up on it; such an answer is never stored."""
        return self.finish_reason not in ("stop", "length")


class Engine(Protocol):
    """One model that answers."""

    name: str  # provenance: "vllm"
    version: str

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        What comes out is a function of the weights and of `requests` alone, not of calls before.
        """

    def close(self) -> None:
        """Frees what the engine holds."""

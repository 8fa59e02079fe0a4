"""What every engine takes and gives. Stages and the response store know these types and no engine's own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stages.config.sampling import Sampling
from stages.vlm.chat import Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class RequestError(ValueError):
    """A request that no engine can answer, such as a prompt longer than the model's context; the message names it."""


class EngineError(RuntimeError):
    """An engine that can't go on: its server died, refuses the key, does not answer. What it yielded before is
    whole.
    """


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
    token_ids: tuple[int, ...]  # as sampled, with the token that ended the turn; empty from an endpoint that gives none
    finish_reason: str  # "stop", "length" (cut), anything else is a failure and says why
    prompt_tokens: int
    completion_tokens: int  # of an endpoint that only counts all n together: its share
    log_probs: tuple[float, ...] | None = None  # of token_ids, before temperature, top-p and the like; where asked for

    @property
    def failed(self) -> bool:
        """True when the engine gave up on it; such an answer is never stored."""
        return self.finish_reason not in ("stop", "length")


@dataclass(frozen=True)
class StartOptions:
    """What a stage wants of an engine."""

    logs: Path  # folder for what servers write
    missing: Sequence[tuple[str, int]] = ()  # question ids and how many answers the store lacks; `replay` names them
    say: Callable[[str], None] = print  # where a start that takes minutes is announced
    own_process: bool = False  # vLLM can't live in a process that trains with others: they would be one group


class Engine(Protocol):
    """One model that answers."""

    name: str  # provenance: "vllm"
    version: str

    @property
    def checkpoint(self) -> Checkpoint:
        """The model; of one that others have, only its card."""

    @property
    def chat(self) -> Chat | RemoteChat:
        """How messages become its tokens, where that is known here."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        In process, what comes out is a function of the weights and of `requests` alone, not of calls before; a server
        draws with the same seeds, but in batches that depend on what arrives when. Raises RequestError for a request
        that can't be answered (in process before any is; elsewhere after all others are), EngineError when nothing more
        can be had. What was yielded before either is whole and worth keeping.
        """

    def close(self) -> None:
        """Frees what the engine holds; ends the servers it started."""


class TrainableEngine(Engine, Protocol):
    """An engine whose weights can be replaced while it runs."""

    def update_weights(self, named: Iterable[tuple[str, "Tensor"]]) -> None:
        """Puts new weights into the running engine and empties its caches.

        `named` is the whole `state_dict()` of the transformers model, head included also where it is tied to the
        embeddings: without it vLLM keeps the old head on CPU.
        """


class Stream(Protocol):
    """Requests that are put in one after another."""

    def put(self, request: Request) -> None:
        """Sends `request`; returns at once."""

    def iter_outcomes(self) -> Iterator[tuple[int, list[Answer] | str]]:
        """Yields (number of the request, its answers in order, or why it was refused) until all that were put in are
        through.
        """


@runtime_checkable
class ConcurrentEngine(Engine, Protocol):
    """An engine on a server, which works while this process does something else."""

    def open_stream(self) -> Stream:
        """A stream of its own; several may be open."""

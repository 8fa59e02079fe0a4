"""The types that every engine accepts and returns. Stages and the response store depend on these types only."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stages.config.sampling import Sampling
from stages.corpora.rows import split_target
from stages.job.failure import Failure
from stages.job.spending import Spending
from stages.vlm.chat import Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


# Of requests whose answer is given: vLLM generates one token after what it scores, which is not kept.
SCORING = Sampling(temperature=0.0, max_tokens=1)


class RequestError(ValueError):
    """A request that no engine can answer, such as a prompt longer than the context; the message names it."""


class EngineError(Failure):
    """An engine that cannot continue: its server died, refuses the key or is down. Earlier answers are complete."""


@dataclass(frozen=True)
class Request:
    """One prompt and its number of answers; `<image>` markers in the messages stand for `images` in order.

    If the last message is the assistant's, or `given_ids` are set, nothing is generated: the one answer is that text,
    or these tokens, with the log probability of each token (`Answer.log_probs`).
    """

    name: str  # for messages: the id of the question
    messages: Sequence[Mapping[str, str]]
    images: Sequence[bytes]  # original bytes, never re-encoded
    sampling: Sampling
    n: int = 1
    seed: int = 0  # answer i is sampled with seed + i
    log_probs: bool = False  # whether answers carry `Answer.log_probs`; needs StartOptions.log_probs
    given_ids: tuple[int, ...] = ()  # tokens of a given answer, which are scored as they are (trap T6)

    @property
    def given(self) -> str | None:
        """The text whose tokens are scored; None if answers are generated or `given_ids` are set."""
        return split_target(self.messages)[1]

    @property
    def is_scored(self) -> bool:
        """Whether a given answer is scored and nothing is generated."""
        return bool(self.given_ids) or self.given is not None


@dataclass(frozen=True)
class Answer:
    """One finished answer."""

    index: int  # 0 .. n - 1 within its request
    text: str  # without special tokens
    token_ids: tuple[int, ...]  # as sampled, including the end-of-turn token; empty if the endpoint returns none
    finish_reason: str  # "stop", "length" (truncated), or the reason of a failure
    prompt_tokens: int
    completion_tokens: int  # from an endpoint that only counts all n together: an equal share
    # log p of token_ids under the distribution that they were sampled from (after penalty, temperature, top-k and
    # top-p; tokens that may not be sampled have probability 0); if requested.
    # Of a given answer: under the model itself, before all of these.
    log_probs: tuple[float, ...] | None = None
    original_text: str | None = None  # as the endpoint sent it, if that has half surrogates: U+FFFD in `text`

    @property
    def failed(self) -> bool:
        """True when the engine gave up on this answer; a failed answer is never stored."""
        return self.finish_reason not in ("stop", "length")


Outcome = list[Answer] | str  # of one request: its answers in order, or the reason of its refusal


@dataclass(frozen=True)
class StartOptions:
    """Options with which a stage starts an engine."""

    logs: Path  # folder for logs of servers
    missing: Sequence[tuple[str, int]] = ()  # question ids and how many answers the store lacks; `replay` names them
    say: Callable[[str], None] = print  # called with messages about a start that takes minutes
    served: str = ""  # name by which an endpoint answered earlier under this name; another one is refused
    log_probs: bool = False  # requests may ask for log probabilities
    own_process: bool = False  # vLLM cannot run in a process of a training group: both would share the process group
    stage: str = ""  # the stage that asks, for `runtime.stage_engines`
    adapter_rank: int = 0  # of the adapter that answers are given with (`update_adapter`); 0: there is none
    spending: Spending | None = None  # gets what an endpoint bills
    gpus: tuple[int, ...] = ()  # GPUs of the engine where others compute at the same time; (): as its settings say


class Engine(Protocol):
    """One model that generates answers."""

    name: str  # provenance: "vllm"
    version: str

    @property
    def checkpoint(self) -> Checkpoint:
        """The model; for a remote model only its card."""

    @property
    def chat(self) -> Chat | RemoteChat:
        """How messages become the model's tokens, if known locally."""

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its n answers in order or the reason of its refusal) as requests finish.

        Takes requests in order, each when there is room for it: the batches stay full until the last request, and
        memory is that of the open requests. In process on CPU an answer is a function of the weights and of its own
        request; on GPUs and servers rounding depends on the batch. Raises EngineError when the engine cannot continue.
        What was yielded before is complete and can be kept.
        """

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        Raises RequestError for a request that cannot be answered, after all other answers; otherwise as
        `iter_outcomes`.
        """

    def close(self) -> None:
        """Frees the engine's resources and stops the servers that it started."""


class TrainableEngine(Engine, Protocol):
    """An engine whose weights can be replaced while it runs."""

    def update_weights(self, named: Iterable[tuple[str, "Tensor"]]) -> int:
        """Loads new weights into the running engine and empties its caches; returns the bytes of the weights.

        `named` is the whole `state_dict()` of the transformers model, including the head if it is tied to the
        embeddings: without it vLLM keeps the old head on CPU.
        """

    def update_adapter(self, save: Callable[[Path], None], size: int) -> int:
        """Answers with another adapter beside the loaded weights from now on; returns the bytes of its files.

        `save` writes it in peft's format to the folder `adapter` of a folder; it has about `size` bytes. The engine
        must have been started with StartOptions.adapter_rank.
        """


class Stream(Protocol):
    """Requests that are added one by one."""

    def put(self, request: Request) -> None:
        """Sends `request`; returns at once."""

    def iter_outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its answers in order or the reason of its refusal) until all are done."""


@runtime_checkable
class SharingEngine(Engine, Protocol):
    """An engine that can free the memory of its GPUs while others compute there."""

    def sleep(self) -> None:
        """Moves the weights to host memory and drops the cache; no request may be open. Does nothing on CPU."""

    def wake(self) -> None:
        """Takes the memory back; the engine answers again with the weights that it had. Does nothing on CPU."""


@runtime_checkable
class ConcurrentEngine(Engine, Protocol):
    """An engine on a server, which generates while this process does other work."""

    def open_stream(self) -> Stream:
        """Opens a separate stream; several may be open."""

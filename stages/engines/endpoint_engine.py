"""Remote models at any endpoint with OpenAI's chat completions API: rented, or hosted by colleagues.

Such a model is identified by name (`models.<id>.endpoint`); its answers are stored under that name. It receives
messages and images, not token ids, and returns text: `token_ids` of its answers are empty. Later stages do not need
them: the student learns from a teacher's text in the student's own tokens, and a verdict is parsed from text.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from stages.config.engines import OpenAi
from stages.corpora.markers import IMAGE_MARKER
from stages.engines.arguments import make_data_url
from stages.engines.calls import IDLE_SECONDS, SHOWN_CHARACTERS, BadReply, Call, Caller, CallStream
from stages.engines.choices import MOST_REPORTED, choose_word, list_words
from stages.engines.engine import Answer, EngineError, Outcome, Request, RequestError
from stages.engines.stream import RequestPart, ServerStream, require_answers, send_in_window
from stages.job.bounded import replace_surrogates, show_value
from stages.job.spending import Spending, TokenPrices
from stages.vlm.chat import RemoteChat
from stages.vlm.checkpoint import Checkpoint

MOST_TOKENS = 2**31  # bound of a token id and of a number of tokens
CHAT_ROUTE = "chat/completions"


class WrongModel(EngineError):
    """The endpoint answered as a model other than the requested one."""


class EndpointEngine:
    """One model at one endpoint."""

    name = "openai"

    def __init__(
        self, checkpoint: Checkpoint, settings: OpenAi, label: str, served: str = "", spending: Spending | None = None
    ) -> None:
        """Raises ValueError when the key's environment variable is not set, BudgetReached when a cap is used up.

        Sends nothing. `served` is the name in the replies that are stored for this model; without it, the first reply
        decides. `spending` gets what is billed.
        """
        if checkpoint.endpoint is None:
            raise ValueError(f"model {label} has no endpoint; give models.{label}.endpoint, or another kind of engine")
        self.checkpoint, self.chat = checkpoint, RemoteChat()
        self.label, self.settings, self._endpoint = label, settings, checkpoint.endpoint
        self._served, self._spending = served, spending
        self._prices = TokenPrices(settings.prompt_price or 0.0, settings.completion_price or 0.0)
        if spending is not None:
            spending.check()
        self.version = f"{checkpoint.endpoint.provider}/{served or checkpoint.endpoint.name}"
        headers = {}
        if settings.api_key is not None:
            if not os.environ.get(settings.api_key):
                raise ValueError(
                    f"runtime.engines.{label}.api_key names {settings.api_key}, which is not set; export it"
                )
            headers["authorization"] = f"Bearer {os.environ[settings.api_key]}"
        connect = functools.partial(
            httpx.AsyncClient,
            base_url=settings.base_url.rstrip("/") + "/",
            headers=headers,
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
            verify=httpx.create_ssl_context(),  # once for all clients: 20 ms
        )
        self._caller = Caller(f"endpoint of {label} ({settings.base_url})", CHAT_ROUTE, [connect], settings)

    @property
    def requests_sent(self) -> int:
        """Requests sent so far, including retries: what a provider counts."""
        return self._caller.counts.sent

    def admit(self, answers: int, most_tokens: int) -> int:
        """Returns how many of so many answers, of at most `most_tokens` each, the budget allows to ask for now."""
        return answers if self._spending is None else self._spending.admit(answers, self._prices, most_tokens)

    def open_stream(self) -> ServerStream:
        """Opens a stream to which requests are added one by one."""
        return ServerStream(CallStream(self._caller), self._make_call, self._split_request)

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its answers or the reason of its refusal) as requests finish.

        As many requests as are in flight wait for a free place; later ones are not taken yet. Raises EngineError as
        `generate` does.
        """
        return send_in_window(self.open_stream(), requests, 2 * self.settings.concurrency)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        A request whose attempts all failed gives failed answers that state the reason. Raises RequestError for a
        request that the endpoint refuses or whose bytes are not an image, after the answers to all others. Raises
        EngineError when the endpoint is down, refuses the key or answers as another model. Answers yielded before an
        error are complete.
        """
        return require_answers(self.iter_outcomes(requests))

    def _split_request(self, request: Request) -> list[RequestPart]:
        """Returns what is sent: the request itself, or one request for each of its answers."""
        if not self.settings.one_answer_a_request:
            return [(0, request)]
        return [(sample, replace(request, n=1, seed=request.seed + sample)) for sample in range(request.n)]

    def _make_call(self, request: Request) -> Call[list[Answer]]:
        return Call(
            request.name, functools.partial(self._make_body, request), functools.partial(self._read_answers, request)
        )

    def _make_body(self, request: Request) -> dict[str, Any]:
        if request.is_scored:
            raise RequestError(
                f"question {request.name}: the endpoint of {self.label} does not give log probabilities of a given "
                "answer; take a model with weights"
            )
        asked = request.sampling
        body: dict[str, Any] = {
            "model": self._endpoint.name,
            "messages": _make_contents(request, self.checkpoint.limits.max_pixels),
            "n": request.n,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            self._endpoint.max_tokens_field: asked.max_tokens,
        }
        if asked.temperature > 0:
            body["seed"] = request.seed % 2**31  # some servers refuse more
        if asked.pattern:  # vLLM's field; other servers ignore it, or refuse it (then `leave_out` helps)
            body["structured_outputs"] = {"regex": asked.pattern}
        if list_words(asked.pattern):  # for those that ignore it: which of the words is likelier
            body |= {"logprobs": True, "top_logprobs": MOST_REPORTED}
        if asked.top_k:  # not in OpenAI's API, so sent only if set
            body["top_k"] = asked.top_k
        if asked.repetition_penalty != 1:
            body["repetition_penalty"] = asked.repetition_penalty
        left_out = self._endpoint.leave_out
        return {name: value for name, value in {**body, **self._endpoint.body}.items() if name not in left_out}

    def _read_answers(self, request: Request, reply: Any) -> list[Answer]:
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice.get("index", 0))
            texts = [_read_content(choice["message"].get("content")) for choice in choices]
            if words := list_words(request.sampling.pattern):
                texts = [choose_word(words, text, choice) for text, choice in zip(texts, choices, strict=True)]
            reasons = [replace_surrogates(str(choice["finish_reason"])[:SHOWN_CHARACTERS]) for choice in choices]
            ids = [_read_token_ids(choice.get("token_ids")) for choice in choices]
        except (AttributeError, KeyError, TypeError) as error:
            raise BadReply(f"{type(error).__name__}: {error}") from error
        prompt_tokens, written = (_read_count(reply, key) for key in ("prompt_tokens", "completion_tokens"))
        if self._spending is not None:
            usable = len(choices) if len(choices) == request.n else 0
            self._spending.add(usable, prompt_tokens, written, self._prices)
        self._check_model(replace_surrogates(str(reply.get("model") or "")[:SHOWN_CHARACTERS]))
        if len(choices) != request.n:
            if len(choices) == 1:
                raise EngineError(
                    f"endpoint of {self.label} gave one answer where {request.n} were asked for; it does not "
                    "know `n`: set "
                    f"runtime.engines.{self.label}.one_answer_a_request"
                )
            raise BadReply(f"{len(choices)} answers, not {request.n}")
        counts = [len(own) or share for own, share in zip(ids, _split_evenly(written, request.n), strict=True)]
        rows = zip(texts, ids, reasons, counts, strict=True)
        answers = (
            Answer(index, text, own, why, prompt_tokens, count) for index, (text, own, why, count) in enumerate(rows)
        )
        return [_make_valid(answer) for answer in answers]

    def _check_model(self, replied: str) -> None:
        """Raises WrongModel when another model wrote the reply: the answers would be stored under a wrong name.

        An alias keeps its name while the model behind it changes; replies tell, because they name the dated model.
        """
        wanted = self._endpoint.replies_as or self._endpoint.name
        if replied and not replied.startswith(wanted):
            raise WrongModel(
                f"endpoint of {self.label} answered as {replied!r}, asked for {self._endpoint.name!r}; correct "
                f"models.{self.label}.endpoint.name, or give replies_as if that is how this model calls itself"
            )

        if replied and self._served and replied != self._served:
            raise WrongModel(
                f"endpoint of {self.label} answers as {replied!r} now, but the answers under this name are of "
                f"{self._served!r}; set models.{self.label}.endpoint.replies_as to {replied!r}, so that its answers "
                "are kept apart, or name the former model"
            )
        if replied:
            self._served, self.version = replied, f"{self._endpoint.provider}/{replied}"

    def close(self) -> None:
        """Cancels calls in flight."""
        self._caller.close()


def _make_valid(answer: Answer) -> Answer:
    """Returns the answer with valid Unicode as its text, and with the original if that is another one."""
    text = replace_surrogates(answer.text)
    return answer if text == answer.text else replace(answer, text=text, original_text=answer.text)


def _read_content(content: object) -> str:
    """Returns the text of a message: of its text parts, if it is a list.

    Raises BadReply for content that is no text.
    """
    parts = content if isinstance(content, list) else [content or ""]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadReply(f"the content is {show_value(content)}, no text")
    return "".join(map(str, texts)).strip()


def _read_token_ids(ids: object) -> tuple[int, ...]:
    """Returns the ids of a reply, () if they are none: the text is what was paid for."""
    known = isinstance(ids, list) and all(type(one) is int and 0 <= one < MOST_TOKENS for one in ids)
    return tuple(ids) if known and isinstance(ids, list) else ()


def _read_count(reply: Mapping[str, Any], key: str) -> int:
    """Returns a number of tokens of `usage`, 0 if the reply has none."""
    usage = reply.get("usage")
    value = usage.get(key) if isinstance(usage, dict) else 0
    return value if type(value) is int and 0 <= value < MOST_TOKENS else 0


def _make_contents(request: Request, max_pixels: int | None) -> list[dict[str, Any]]:
    """Returns the messages in OpenAI's form; the first `<image>` markers become the images, further ones stay text.

    Images of more than `max_pixels` are scaled down.
    """
    images = iter(request.images)
    left = len(request.images)
    messages: list[dict[str, Any]] = []
    for message in request.messages:
        texts = message["content"].split(IMAGE_MARKER, left)
        left -= len(texts) - 1
        if len(texts) == 1:
            messages.append({"role": message["role"], "content": texts[0]})
            continue
        parts: list[dict[str, Any]] = []
        for place, text in enumerate(texts):
            if place:
                url = make_data_url(next(images), request.name, max_pixels)
                parts.append({"type": "image_url", "image_url": {"url": url}})
            if text:
                parts.append({"type": "text", "text": text})
        messages.append({"role": message["role"], "content": parts})
    return messages


def _split_evenly(total: int, n: int) -> list[int]:
    """Splits `total` into n integers that are as equal as possible."""
    return [total // n + (place < total % n) for place in range(n)]

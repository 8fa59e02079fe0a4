"""Replies of endpoints: any JSON, bytes and headers are answers or a failed try; what is paid for stays readable."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stages.config.engines import OpenAi
from stages.config.sampling import Sampling
from stages.engines import calls
from stages.engines.calls import CallCounts, Caller, parse_retry_after
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Answer, EngineError, Request, RequestError
from stages.vlm.checkpoint import open_checkpoint, write_card
from tests.fuzz.mutations import HOSTILE_TEXTS, draw_inputs, dump_json, limit_time, mutate_bytes, mutate_json

SECONDS = 10.0
PARTS = [{"type": "text", "text": "It is "}, {"type": "text", "text": "8."}]
MESSAGE = {"role": "assistant", "content": "It is 7."}
REPLY = {
    "id": "x",
    "model": "big-1",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": MESSAGE, "token_ids": [1, 2]},
        {"index": 1, "finish_reason": "stop", "message": {**MESSAGE, "content": PARTS}, "token_ids": [1, 2]},
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
}
VALUES = ("", "0", "1e999", "9" * 400, "-1", "nan", "²", "Mon, 99 Foo 99999 99:99:99 GMT", "gzip", "zstd", "identity")
NAMES = ("retry-after", "content-encoding", "content-type", "content-length")


class Endpoint:
    """An engine whose endpoint gives a chosen reply to everything."""

    def __init__(self, folder: Path) -> None:
        write_card(folder, "remote", "bf16", 4096, {"endpoint": {"provider": "somebody", "name": "big-1"}})
        values = {"kind": "openai", "base_url": "http://127.0.0.1:9/", "attempts": 1, "timeout": SECONDS}
        settings = OpenAi.model_validate(values)
        self.engine = EndpointEngine(open_checkpoint(folder), settings, "big")
        self.engine._caller.close()
        self._reply: tuple[bytes, int, list[tuple[bytes, bytes]]] = (b"", 200, [])
        reply = httpx.MockTransport(self._answer)
        self.engine._caller = Caller(
            "endpoint", "x", [lambda: httpx.AsyncClient(transport=reply, base_url="http://x/")], settings
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        content, status, headers = self._reply
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(content), request=request)

    def ask(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> list[Answer]:
        """The answers to one request for two."""
        self._reply = (
            content,
            status,
            [(key.encode(), value.encode("latin-1")) for key, value in (headers or {}).items()],
        )
        self.engine._caller.counts = CallCounts()
        asked = Request("q", [{"role": "user", "content": "?"}], [], Sampling(temperature=0.7, max_tokens=20), 2, 0)
        with limit_time(SECONDS):
            ((_, found),) = self.engine.generate([asked])
        return found


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    started = Endpoint(tmp_path)
    yield started
    started.engine.close()


def check_answers(found: list[Answer]) -> None:
    """Texts can be written as UTF-8, counts fit 32 bits."""
    assert len(found) == 2
    for answer in found:
        json.dumps(answer.text, ensure_ascii=False).encode()
        answer.finish_reason.encode()
        assert 0 <= answer.prompt_tokens < 2**31
        assert 0 <= answer.completion_tokens < 2**31
        assert all(0 <= token < 2**31 for token in answer.token_ids)


def test_any_reply_is_an_answer_or_a_failed_try(endpoint: Endpoint) -> None:
    outcomes = set()
    for rng in draw_inputs():
        content = dump_json(mutate_json(REPLY, rng), rng)
        content = mutate_bytes(content, rng) if rng.random() < 0.3 else content
        status = rng.choice((200, 200, 200, 200, 400, 429, 500, 204, 302))
        headers = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.choice((0, 0, 0, 1)))}
        try:
            found = endpoint.ask(content, status, headers)
        except (EngineError, RequestError) as error:
            outcomes.add("refused" if str(error).isprintable() else str(error))
        else:
            check_answers(found)
            outcomes.add("failed" if found[0].failed else "answered")
    assert outcomes == {"refused", "failed", "answered"}


def test_parts_are_joined_and_half_surrogates_replaced(endpoint: Endpoint) -> None:
    found = endpoint.ask(json.dumps(REPLY).encode())
    assert [answer.text for answer in found] == ["It is 7.", "It is 8."]
    for text in HOSTILE_TEXTS:
        reply: dict[str, Any] = json.loads(json.dumps(REPLY))
        reply["choices"][0]["message"]["content"] = text
        found = endpoint.ask(json.dumps(reply).encode())
        check_answers(found)
        assert found[1].text == "It is 8."
        assert found[0].text == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def test_counts_that_are_none_do_not_lose_the_answer(endpoint: Endpoint) -> None:
    for usage in (None, [], "x", {"prompt_tokens": "9"}, {"completion_tokens": 10**30}, {"completion_tokens": -5}):
        found = endpoint.ask(json.dumps({**REPLY, "usage": usage}).encode())
        assert [answer.text for answer in found] == ["It is 7.", "It is 8."]


@pytest.mark.parametrize("content", [{"a": 1}, [{"type": "image_url"}], [["x"]], 5, True])
def test_content_that_is_no_text_is_a_failed_try(endpoint: Endpoint, content: object) -> None:
    reply: dict[str, Any] = json.loads(json.dumps(REPLY))
    reply["choices"][1]["message"]["content"] = content
    assert all(answer.failed for answer in endpoint.ask(json.dumps(reply).encode()))


def test_a_body_is_bounded_also_when_it_is_compressed(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.dumps(REPLY).encode()
    assert not endpoint.ask(gzip.compress(whole), headers={"content-encoding": "gzip"})[0].failed
    monkeypatch.setattr(calls, "LARGEST_BODY", 1 << 20)
    for content, headers in (
        (b" " * (2 << 20) + whole, {}),
        (gzip.compress(b" " * (2 << 20) + whole), {"content-encoding": "gzip"}),
        (b"no gzip", {"content-encoding": "gzip"}),
        (whole, {"content-encoding": "zstd"}),
    ):
        assert endpoint.ask(content, headers=headers)[0].failed


@pytest.mark.parametrize(
    "header", ["", "x", "nan", "inf", "1e9", "²", "-1", "Mon, 99 Foo 99999 99:99:99 GMT", "9" * 400]
)
def test_a_senseless_retry_after_is_none(header: str | None) -> None:
    assert parse_retry_after(header) == 0

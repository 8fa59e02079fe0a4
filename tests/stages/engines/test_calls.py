"""Several servers that answer alike: who gets a request, and what happens when one of them is bad."""

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from stages.config.engines import Calling
from stages.engines.calls import Call, Caller, CallStream, FailedCall


@contextmanager
def calling(*fakes: Any, **settings: Any) -> Iterator[Caller]:
    servers = [functools.partial(httpx.AsyncClient, base_url=fake.url) for fake in fakes]
    caller = Caller("replicas", "chat/completions", servers, Calling(timeout=20.0, deadline=60.0, **settings))
    try:
        yield caller
    finally:
        caller.close()


def calls(count: int) -> list[Call[str]]:
    def body(number: int) -> dict[str, Any]:
        return {"model": "m", "n": 1, "messages": [{"role": "user", "content": f"say {number}"}]}

    def read(reply: Any) -> str:
        return str(reply["choices"][0]["message"]["content"])

    return [Call(f"q{number}", lambda number=number: body(number), read) for number in range(count)]  # type: ignore[misc]


def replies(caller: Caller, asked: list[Call[str]]) -> Iterator[tuple[int, Any]]:
    stream: CallStream[str] = CallStream(caller)
    for call in asked:
        stream.put(call)
    return stream.iter_outcomes()


def test_the_server_with_least_to_do_gets_the_next_request(two_fakes: tuple[Any, Any]) -> None:
    """One needs 0.6 s for an answer, the other 0.02 s: nobody waits behind the slow one."""
    slow, fast = two_fakes
    slow.latency, fast.latency = 0.6, 0.02
    with calling(slow, fast, concurrency=4) as caller:
        found = dict(replies(caller, calls(60)))
    assert sorted(found) == list(range(60))
    assert slow.count + fast.count == 60
    assert 2 <= slow.count < 20 < fast.count
    assert max(slow.most_under_way, fast.most_under_way) <= 4


def test_equal_servers_share_equally(two_fakes: tuple[Any, Any]) -> None:
    first, second = two_fakes
    first.latency = second.latency = 0.1  # long against what a busy machine takes for a call
    with calling(first, second, concurrency=8) as caller:
        assert len(dict(replies(caller, calls(80)))) == 80
    assert abs(first.count - second.count) <= 16


def test_what_failed_at_one_server_is_tried_at_another(two_fakes: tuple[Any, Any]) -> None:
    bad, good = two_fakes
    bad.fault = lambda question, before: (500, {})
    with calling(bad, good, concurrency=2, attempts=2) as caller:
        found = dict(replies(caller, calls(12)))
    assert not [outcome for outcome in found.values() if isinstance(outcome, FailedCall)]
    assert sum(good.asked.values()) == 12


def test_a_call_that_is_left_early_stops_sending(two_fakes: tuple[Any, Any]) -> None:
    first, second = two_fakes
    first.latency = second.latency = 0.05
    with calling(first, second, concurrency=2) as caller:
        stream = replies(caller, calls(200))
        next(stream)
        stream.close()
        assert len(dict(replies(caller, calls(4)))) == 4  # the caller goes on
    assert first.count + second.count < 20


def test_calls_are_under_way_side_by_side(fake: Any) -> None:
    """The first is answered only when the second is there (trap T27)."""
    second = threading.Event()

    def meet(question: str, before: int) -> None:
        if question == "say 1":
            second.set()
        second.wait(10)

    fake.fault = meet
    with calling(fake, concurrency=2) as caller:
        assert len(dict(replies(caller, calls(2)))) == 2
    assert fake.most_under_way == 2


def test_a_stream_sends_at_once_what_is_put_in(fake: Any) -> None:
    """Whoever puts calls in need not wait for replies: the server has seen the first before the second is put in."""
    with calling(fake, concurrency=2) as caller:
        stream: CallStream[str] = CallStream(caller)
        for number, call in enumerate(calls(3)):
            stream.put(call)
            limit = time.monotonic() + 30
            while fake.count <= number and time.monotonic() < limit:
                time.sleep(0.01)
            assert fake.count == number + 1
        assert sorted(dict(stream.iter_outcomes())) == [0, 1, 2]
        assert list(CallStream(caller).iter_outcomes()) == []


def test_a_call_has_a_connection_of_its_own_that_is_kept(fake: Any) -> None:
    """As many clients as calls under way, not as calls."""
    fake.latency = 0.02
    with calling(fake, concurrency=8) as caller:
        for _ in range(3):
            assert len(dict(replies(caller, calls(40)))) == 40
        assert len(caller._places[0].clients) == len(caller._places[0].free) <= 8

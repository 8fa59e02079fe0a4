"""Concurrent HTTP calls to servers that may be slow, overloaded, broken or down.

One thread with an event loop performs the calls; the stage submits them and takes replies as they arrive. At most
`concurrency` calls are in flight. A failed call is retried a limited number of times with exponential backoff and
jitter, so that many callers do not retry in step; a server's Retry-After delays all calls. A call that is not done
`deadline` seconds after it was put in ends the stream. Replies that arrived before an error are always delivered first.
"""

import asyncio
import email.utils
import json
import queue
import random
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from stages.config.engines import Calling
from stages.engines.engine import EngineError, RequestError

_T = TypeVar("_T")
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt; upper bound for later ones
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # keep-alive; uvicorn closes after 5 s, and a call at that moment costs an attempt
DOWN_AFTER = 8  # consecutive failed calls, without a reply in between, that count as a server that is down
LARGEST_BODY = 64 << 20  # bytes of a reply, also after decompression
SHOWN_CHARACTERS = 300  # characters of a reply quoted in an error
_GZIP_OR_ZLIB = 47  # wbits of zlib: the header tells which
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_AGAIN = {408, 409, 425, 429}  # and all codes from 500
_REFUSED = {401, 403, 404, 405}  # wrong key, no permission, wrong model or address: a retry does not help


class BadReply(ValueError):
    """A reply that is not JSON, or not the expected JSON; retried."""


@dataclass(frozen=True)
class Call(Generic[_T]):
    """One request to send, and how its reply is parsed."""

    question: str  # for messages
    body: Callable[[], Mapping[str, Any]]  # built just before sending: bodies hold images
    read: Callable[[Any], _T]  # raises BadReply


@dataclass(frozen=True)
class FailedCall:
    """A call whose attempts all failed."""

    reason: str


@dataclass
class CallTarget:
    """One server that receives calls.

    Every call in flight has its own client, which is reused by the next call. httpx's pool scans all its connections
    for each request: with 64 in one client, 100 calls of 0.5 s took 2.3 to 3 s, mostly in that scan.
    """

    connect: Callable[[], httpx.AsyncClient]
    under_way: int = 0
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    free: list[httpx.AsyncClient] = field(default_factory=list)  # last in, first out: the last one's connection is open

    def take_client(self) -> httpx.AsyncClient:
        """Returns an unused client, to be put back into `free`."""
        if self.free:
            return self.free.pop()
        self.clients.append(self.connect())
        return self.clients[-1]


class _Failure(Exception):
    """One failed attempt."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.reason, self.wait = reason, wait  # wait: seconds from Retry-After


@dataclass
class CallCounts:
    """Counts of sent requests, for endpoints that bill by the request."""

    sent: int = 0
    repeated: int = 0
    given_up_in_row: int = 0
    resume_at: float = field(default=0.0, repr=False)  # time.monotonic() before which nothing is sent


class Caller:
    """Sends calls to one or several equivalent servers."""

    def __init__(
        self,
        title: str,
        path: str,
        servers: Sequence[Callable[[], httpx.AsyncClient]],
        settings: Calling,
        ended: Callable[[], str | None] = lambda: None,
        trusted: bool = False,
    ) -> None:
        """Starts the thread of the calls. Each of `servers` creates a client of one server.

        `ended` returns why a server is gone for good, or None. A `trusted` server answers 400 only because of the
        question. Another server may answer 400 because it does not know a field, so that many refusals in a row end the
        work.
        """
        self.title, self.path, self.settings = title, path, settings
        self.counts = CallCounts()
        self._ended, self._trusted = ended, trusted
        self._places = [CallTarget(connect) for connect in servers]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"calls to {title}", daemon=True)
        self._thread.start()

    @property
    def open_calls(self) -> list[int]:
        """Number of calls that each server is answering, in the order of the servers."""
        return [place.under_way for place in self._places]

    def start(self, stream: "CallStream[_T]") -> "Future[None]":
        """Starts to process `stream` in the thread of the calls."""
        return asyncio.run_coroutine_threadsafe(self._work(stream), self._loop)

    def feed(self, stream: "CallStream[_T]", index: int, call: Call[_T]) -> None:
        """Passes a call to the thread of the calls."""
        self._loop.call_soon_threadsafe(stream.limits.__setitem__, index, time.monotonic() + self.settings.deadline)
        self._loop.call_soon_threadsafe(stream.waiting.put_nowait, (index, call))

    async def _work(self, stream: "CallStream[_T]") -> None:
        """Performs the calls of a stream until it is cancelled, or a call is not done at its limit."""

        async def worker() -> None:
            while True:
                index, call = await stream.waiting.get()
                outcome = await self._call_with_retries(call, stream.limits[index])
                stream.come.put((index, outcome))
                stream.answered += 1
                del stream.limits[index]

        async def watch() -> None:
            while True:
                oldest = next(iter(stream.limits.values()), time.monotonic() + self.settings.deadline)
                if (left := oldest - time.monotonic()) <= 0:
                    raise EngineError(
                        f"{self.title}: {stream.answered} of {stream.count} requests were answered within the deadline "
                        f"of {self.settings.deadline:g} s; run again for the rest, or raise deadline"
                    )
                await asyncio.sleep(left)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch())
                for _ in range(self.settings.concurrency):
                    group.create_task(worker())
        except ExceptionGroup as several:
            stream.come.put(_find_first_error(several))

    async def _call_with_retries(self, call: Call[_T], limit: float) -> _T | FailedCall | RequestError:
        try:
            body = json.dumps(call.body()).encode()
        except RequestError as error:
            return error
        failed_at: CallTarget | None = None
        for attempt in range(1, self.settings.attempts + 1):
            while (wait := self.counts.resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait * random.uniform(1.0, 1.2))
            self.counts.sent += 1
            self.counts.repeated += attempt > 1
            try:
                async with self._use_least_busy(failed_at) as (failed_at, client):
                    reply = await self._try_once(client, call, body)
            except RequestError as error:
                if not self._trusted:
                    self._count_failure(str(error))
                return error
            except _Failure as error:
                failure = error
            else:
                self.counts.given_up_in_row = 0
                return reply
            if (why := self._ended()) is not None:
                raise EngineError(f"{self.title}: {why}")
            if time.monotonic() + failure.wait > limit:
                raise EngineError(f"{self.title}: {failure.reason}; waiting {failure.wait:g} s would pass the deadline")
            if failure.wait:
                self.counts.resume_at = max(self.counts.resume_at, time.monotonic() + failure.wait)
            if attempt < self.settings.attempts:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)))
        reason = f"question {call.question}: {failure.reason} (try {attempt} of {self.settings.attempts})"
        self._count_failure(reason)
        return FailedCall(reason)

    def _count_failure(self, reason: str) -> None:
        self.counts.given_up_in_row += 1
        if self.counts.given_up_in_row >= DOWN_AFTER:
            raise EngineError(f"{self.title}: {DOWN_AFTER} requests in a row failed, so it is down; the last: {reason}")

    @asynccontextmanager
    async def _use_least_busy(
        self, failed_at: CallTarget | None
    ) -> AsyncIterator[tuple[CallTarget, httpx.AsyncClient]]:
        """Yields the server with the fewest calls in flight, and a client; avoids `failed_at` if there is another."""
        open_ones = [place for place in self._places if place is not failed_at] or self._places
        place = min(open_ones, key=lambda one: one.under_way)
        place.under_way += 1
        client = place.take_client()
        try:
            yield place, client
        finally:
            place.under_way -= 1
            place.free.append(client)

    async def _try_once(self, client: httpx.AsyncClient, call: Call[_T], body: bytes) -> _T:
        timeout = httpx.Timeout(self.settings.timeout, connect=min(CONNECT_SECONDS, self.settings.timeout), pool=None)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        sending = client.stream("POST", self.path, content=body, headers=headers, timeout=timeout)
        try:
            async with asyncio.timeout(self.settings.timeout), sending as response:  # httpx limits single reads only
                content = await _read_body(response)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise _Failure(f"no reply within {self.settings.timeout:g} s") from error
        except httpx.RequestError as error:
            raise _Failure(f"{type(error).__name__}: {error}") from error
        said = _shorten_body(content, response.request)
        if response.status_code != 200:
            raise self._make_refusal(call.question, response, said)
        try:
            return call.read(json.loads(content))
        except (ValueError, RecursionError) as error:  # BadReply, no JSON, no text, an integer of 5,000 digits
            raise _Failure(f"an unusable reply ({error!s:.200}): {said!r}") from error

    def _make_refusal(self, question: str, response: httpx.Response, said: str) -> Exception:
        code = response.status_code
        reason = f"HTTP {code}: {said or '(no text)'}"
        if code in _REFUSED:
            return EngineError(f"{self.title}: {reason}; look at address, model name and key")
        if code in _AGAIN or code >= 500:
            return _Failure(reason, parse_retry_after(response.headers.get("retry-after")))
        return RequestError(f"question {question}: {reason}")

    def close(self) -> None:
        """Ends the thread; calls in flight are cancelled."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for client in [client for place in self._places for client in place.clients]:
                await client.aclose()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=CONNECT_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CONNECT_SECONDS)
            self._loop.close()


class CallStream(Generic[_T]):
    """Calls that are sent as they are put in. Used from one thread; the calls run in another."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._work: Future[None] | None = None
        self.count = self.answered = 0
        self.waiting: asyncio.Queue[tuple[int, Call[_T]]] = asyncio.Queue()
        self.limits: dict[int, float] = {}  # time.monotonic() at which each open call must be done, oldest first
        self.come: queue.SimpleQueue[tuple[int, _T | FailedCall | RequestError] | Exception] = queue.SimpleQueue()

    def put(self, call: Call[_T]) -> None:
        """Sends `call` once fewer than `concurrency` are in flight; its deadline starts now."""
        if self._work is None:
            self._work = self._caller.start(self)
        self._caller.feed(self, self.count, call)
        self.count += 1

    def iter_outcomes(self) -> Iterator[tuple[int, _T | FailedCall | RequestError]]:
        """Yields (number of the call, its outcome) as replies arrive, until all calls are done.

        Calls may be put in while it yields, not afterwards. Raises EngineError when the remaining calls cannot be
        answered. If the caller stops iterating early, calls in flight are cancelled.
        """
        if self._work is None:
            return
        returned = 0
        try:
            while returned < self.count:
                item = self.come.get(timeout=self._caller.settings.deadline + 60)
                if isinstance(item, Exception):
                    raise item
                returned += 1
                yield item
        finally:
            self._work.cancel()


async def _read_body(response: httpx.Response) -> bytes:
    """Returns the body, decompressed. Raises _Failure above LARGEST_BODY bytes, or if it can't be decompressed."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > LARGEST_BODY:
            raise _Failure(f"a reply of more than {LARGEST_BODY:,} bytes")
    if encoding in ("", "identity"):
        return bytes(content)
    if encoding not in ("gzip", "deflate"):
        raise _Failure(f"a reply in the encoding {encoding[:40]!r}, which was not asked for")
    try:
        whole = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, LARGEST_BODY + 1)
    except zlib.error as error:
        raise _Failure(f"a reply that can't be decompressed ({error})") from error
    if len(whole) > LARGEST_BODY:
        raise _Failure(f"a reply of more than {LARGEST_BODY:,} bytes")
    return whole


def _shorten_body(content: bytes, request: httpx.Request) -> str:
    """Returns the start of a reply as one printable line for messages and the store.

    The key is masked: some servers repeat a refused key.
    """
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    text = content[: 4 * (SHOWN_CHARACTERS + len(key))].decode("utf-8", "replace")
    text = text.replace(key, "[the key]") if key else text
    return " ".join("".join(one if one.isprintable() else " " for one in text[:SHOWN_CHARACTERS]).split())


def parse_retry_after(header: str | None) -> float:
    """Returns the seconds in a Retry-After header, in either form (RFC 9110, 10.2.3); 0 without one."""
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = email.utils.parsedate_tz(text)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0
    except (ValueError, OverflowError, IndexError):  # a date that no calendar has
        return 0.0


def _find_first_error(several: ExceptionGroup[Any]) -> Exception:
    """Returns the first error in a group that is not a group itself."""
    inner = several.exceptions[0]
    return _find_first_error(inner) if isinstance(inner, ExceptionGroup) else inner

"""The Prefect server that `ril serve` and `ril run` start: Prefect's own, whose clicks outlast a busy database.

While Prefect's services write to its SQLite file, a request that reads and then writes is refused at once with 503
("database is locked"; nothing was done). Prefect's own clients ask again, its UI doesn't: a click on Submit ends in
"Something went wrong". This server asks again itself before a browser gets to see it.

It takes no request without the key in PREFECT_SERVER_API_AUTH_STRING, and none for a host name that is not this
machine's: a page whose name an attacker points to 127.0.0.1 (DNS rebinding) is no page of this server.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import psutil

from flows.environment import leave_pandas_out
from flows.loopback import NAMES
from flows.ui.login import App, LoginPage, Message, Receive, Send

BUSY = 503
_GIVE_UP_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_END_SECONDS = 3  # for what is under way when the server is told to end; pages keep a web socket open for ever
_READS = ("GET", "HEAD", "OPTIONS")  # a reader never finds SQLite's write-ahead log locked


class RetryWhenBusy:
    """The ASGI app `app`, asked again for up to `seconds` while it answers a request that changes something with 503.

    The last answer is what the client gets, 503 too. Requests that only read, and web sockets, pass straight through.
    """

    def __init__(self, app: App, seconds: float = _GIVE_UP_SECONDS) -> None:
        self.app, self.seconds = app, seconds
        self._turn = asyncio.Lock()  # of those that were refused: asked all at once, they would refuse each other again

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or scope["method"] in _READS:
            await self.app(scope, receive, send)
            return
        request = await _read_body(receive)
        end = time.monotonic() + self.seconds
        if await self._try_answer(dict(scope), request, receive, send, last=False):
            return
        async with self._turn:
            while not await self._try_answer(dict(scope), request, receive, send, last=time.monotonic() > end):
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _try_answer(
        self, scope: Message, request: list[Message], receive: Receive, send: Send, last: bool
    ) -> bool:
        """Whether the client has got an answer; False when the app was busy and this is not the last attempt."""
        left, busy = list(request), False

        async def replay() -> Message:
            return left.pop(0) if left else await receive()

        async def hold_back(message: Message) -> None:
            nonlocal busy
            busy = busy or (message["type"] == "http.response.start" and message["status"] == BUSY and not last)
            if not busy:
                await send(message)

        try:
            await self.app(scope, replay, hold_back)
        except Exception:  # starlette raises the error of a 503 once more after it has answered with it
            if not busy:
                raise
        return not busy


async def _read_body(receive: Receive) -> list[Message]:
    """The messages of one request's body, or those until the client left."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def list_host_names(host: str) -> list[str]:
    """Names and addresses by which a server that listens at `host` may be called.

    At all addresses (0.0.0.0) these are the names and addresses of this machine.
    """
    if host not in ("0.0.0.0", "::"):  # nosec B104: compared, not bound
        return [*NAMES, host.lower()]
    addresses = [one.address.partition("%")[0] for found in psutil.net_if_addrs().values() for one in found]
    return [*NAMES, socket.gethostname().lower(), socket.getfqdn().lower(), *addresses]


@asynccontextmanager
async def _work_nothing(docket: Any, **_: Any) -> AsyncIterator[None]:
    """In place of Prefect's queue of work for deployments, which asks its queue ten times a second: 5 % of a core.

    What the server puts there meanwhile, such as the removal of a deleted run's log, is left to Prefect's vacuum.
    """
    docket.register_collection("prefect.server.api.background_workers:task_functions")
    yield


def main() -> None:
    """Serves Prefect's API and UI until this process is told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui.prefect_server", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--host", required=True, help="address to listen at")
    parser.add_argument("--port", required=True, type=int, help="port to listen at")
    parser.add_argument("--no-services", action="store_true", help="API and UI only: nothing that deployments need")
    told = parser.parse_args()

    if told.no_services:  # read when Prefect is imported; what is registered are blocks, which deployments use
        os.environ.setdefault("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "false")
    leave_pandas_out()
    import uvicorn
    from prefect.server.api import server
    from prefect.settings import get_current_settings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if told.no_services:
        server.background_worker = _work_nothing  # type: ignore[assignment, attr-defined]
    settings = get_current_settings().server.api
    if not settings.auth_string or not settings.auth_string.get_secret_value():
        sys.exit("error: PREFECT_SERVER_API_AUTH_STRING is not set: without a key everybody could run commands here")
    kept = settings.keepalive_timeout
    app: Any = LoginPage(RetryWhenBusy(server.create_app(final=True, webserver_only=told.no_services)))
    uvicorn.run(
        TrustedHostMiddleware(app, list_host_names(told.host), www_redirect=False),
        host=told.host,
        port=told.port,
        timeout_keep_alive=kept,
        timeout_graceful_shutdown=_END_SECONDS,
        log_level="warning",
    )


if __name__ == "__main__":
    main()

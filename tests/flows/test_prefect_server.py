"""The server of `ril serve` asks a busy Prefect again, so that a click is never lost to a locked database."""

import asyncio
import base64
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.ui.prefect_server import BUSY, RetryWhenBusy
from tests.flows.test_server import running_server

KEY = "ril:known"
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": f"Basic {base64.b64encode(KEY.encode()).decode()}",
}


class Busy:
    """An app that says 503 to the first `times` requests, then 201, and keeps the bodies that it was sent."""

    def __init__(self, times: int) -> None:
        self.times, self.bodies = times, list[bytes]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        scope["path"] = "/changed by the app"
        status = BUSY if len(self.bodies) <= self.times else 201
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": str(status).encode(), "more_body": False})
        if status == BUSY:
            raise OSError("database is locked")  # as starlette's handler of errors does after its answer


def asked(app: Busy, method: str = "POST", seconds: float = 30.0) -> list[Any]:
    """What the client of one request gets to see."""
    parts = ((b"half ", True), (b"and half", False))
    request = [{"type": "http.request", "body": part, "more_body": more} for part, more in parts]
    answer = list[Any]()

    async def receive() -> Any:
        return request.pop(0)

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {"type": "http", "method": method, "path": "/create_flow_run"}
    with suppress(OSError):
        asyncio.run(RetryWhenBusy(app, seconds)(scope, receive, send))
    return answer


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_busy_app_is_asked_again_with_the_same_body(times: int) -> None:
    app = Busy(times)
    start, body = asked(app)
    assert (start["status"], body["body"]) == (201, b"201")
    assert app.bodies == [b"half and half"] * (times + 1)


def test_an_app_that_stays_busy_is_given_up_and_the_client_told() -> None:
    app = Busy(10**6)
    start, body = asked(app, seconds=0.5)
    assert (start["status"], body["body"]) == (BUSY, b"503")
    assert 3 <= len(app.bodies) <= 12, "0.05 s between attempts"


def test_a_read_is_asked_once() -> None:
    app = Busy(1)
    assert asked(app, "GET")[0]["status"] == BUSY
    assert len(app.bodies) == 1


@pytest.mark.prefect
@pytest.mark.slow
def test_no_click_is_lost_when_many_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", KEY)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", KEY)
    with running_server(tmp_path / "home", "flows.ui.prefect_server") as (url, _):
        deployment = made(url)
        with ThreadPoolExecutor(16) as clicks:
            statuses = list(clicks.map(lambda _: click(url, deployment), range(160)))
    assert statuses == [201] * 160  # 145 of them are refused by `prefect server start`


def made(url: str) -> str:
    """A deployment that nobody serves."""
    flow = said(f"{url}/flows/", {"name": "clicked"})["id"]
    return str(said(f"{url}/deployments/", {"name": "form", "flow_id": flow})["id"])


def click(url: str, deployment: str) -> int:
    """The status that the UI gets for one click on Submit."""
    try:
        said(f"{url}/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    except urllib.error.HTTPError as error:
        return error.code
    return 201


def said(url: str, body: Any) -> Any:
    """The server's answer to `body`; HTTPError when it refuses."""
    request = urllib.request.Request(url, json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())

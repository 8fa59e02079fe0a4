"""`ril demo`: a page on loopback that asks the models of a run side by side.

The page is one file that loads nothing from elsewhere. Its link holds a key in the fragment, which a browser sends
nowhere; each request carries it in a header, and other host names, origins and frames are refused.
"""

import base64
import binascii
import hmac
import http.server
import json
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flows.chat.candidates import ChatError
from flows.ui.prefect_server import list_host_names

_PAGE = Path(__file__).with_name("page.html")
_KEY_BYTES = 24  # 192 bits
MOST_BYTES = 32 << 20  # of a request: a picture of 24 MB in base64
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ANSWER_SECONDS = 4 * 3600.0  # until all engines have started and answered


class PageQuestion:
    """A question of the page."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises ChatError for values that the page does not send."""
        self.text, self.reference, self.row = (_take_text(values, key) for key in ("question", "reference", "row"))
        models, pictures = values.get("models", []), values.get("pictures", [])
        if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
            raise ChatError("models is no list of names")
        if not isinstance(pictures, list) or not all(isinstance(one, str) for one in pictures):
            raise ChatError("pictures is no list of texts in base64")
        self.models: Sequence[str] = models
        try:
            self.pictures = [base64.b64decode(one, validate=True) for one in pictures]
        except binascii.Error as error:
            raise ChatError(f"a picture is not in base64: {error}") from error


def _take_text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise ChatError(f"{key} is no text")
    return value.strip()


@dataclass(frozen=True)
class Demo:
    """A running page, and what it was asked and waits for."""

    link: str
    waiting: "queue.SimpleQueue[tuple[PageQuestion, Future[dict[str, Any]]]]"

    def answer_next(self, answer: Callable[[PageQuestion], dict[str, Any]], seconds: float) -> bool:
        """Answers the next question on this thread, which is that of the engines; False if none came within `seconds`.

        A ChatError of `answer` is shown on the page.
        """
        try:
            question, done = self.waiting.get(timeout=seconds)
        except queue.Empty:
            return False
        try:
            done.set_result(answer(question))
        except ChatError as error:
            done.set_exception(error)
        except BaseException:
            done.set_exception(ChatError("`ril demo` has ended; its terminal says why"))
            raise
        return True


@contextmanager
def serve_demo(host: str, port: int, facts: Mapping[str, Any]) -> Iterator[Demo]:
    """Serves the page for this block; `facts` is what it shows of the models. Questions wait for `Demo.answer_next`."""
    key = secrets.token_urlsafe(_KEY_BYTES)
    waiting: queue.SimpleQueue[tuple[PageQuestion, Future[dict[str, Any]]]] = queue.SimpleQueue()
    handler: Any = partial(_Page, key=key, names=list_host_names(host), facts=facts, waiting=waiting)
    server = http.server.ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Demo(f"http://{host}:{server.server_port}/#{key}", waiting)
    finally:
        server.shutdown()
        server.server_close()


class _Page(http.server.BaseHTTPRequestHandler):
    """The page at /, the models at /models, answers at /ask."""

    timeout = 60.0  # seconds for a request to arrive

    def __init__(self, *arguments: Any, key: str, names: list[str], facts: Mapping[str, Any], waiting: Any) -> None:
        self.key, self.names, self.facts, self.waiting = key, names, facts, waiting
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers one request."""
        if self.path == "/" and self._is_own_host():
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.read_bytes())
        elif self.path == "/models" and self._is_allowed():
            self._send_values(self.facts)
        else:
            self._refuse()

    def do_POST(self) -> None:
        """Answers one question."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/ask" or not self._is_allowed():
            self._refuse()
        elif not length.isdigit() or int(length) > MOST_BYTES:
            self._send_values({"error": f"a question has at most {MOST_BYTES >> 20} MiB"}, HTTPStatus.BAD_REQUEST)
        else:
            try:
                values = json.loads(self.rfile.read(int(length)))
                if not isinstance(values, dict):
                    raise ChatError("a question is an object")
                done: Future[dict[str, Any]] = Future()
                self.waiting.put((PageQuestion(values), done))
                self._send_values(done.result(ANSWER_SECONDS))
            except (ChatError, ValueError, RecursionError, TimeoutError) as error:
                self._send_values({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _is_own_host(self) -> bool:
        return re.sub(r":\d+$", "", self.headers.get("Host", "")).strip("[]").lower() in self.names

    def _is_allowed(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._is_own_host() and hmac.compare_digest(given.encode(), self.key.encode())

    def _refuse(self) -> None:
        self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")

    def _send_values(self, values: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, "application/json", json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a request line is of no use to a person."""

"""A small HTTP server that answers chat completions, and misbehaves as it is told: the source of faults."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fake:
    """What the server was asked, and how it is to answer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()  # requests by question
        self.under_way = self.most_under_way = 0
        self.latency = 0.0
        self.url = ""
        self.model: str | None = None  # what it calls itself; else what it was asked for
        self.knows_n = True
        self.says: Callable[[str, int], str] = lambda question, sample: f"{question}! {sample} "
        self.reports: Callable[[str], Any] = lambda question: None  # `logprobs` of a choice, where they are asked for
        # Called with (question, how often it was asked before): what goes wrong, or None.
        self.fault: Callable[[str, int], Any] = lambda question, before: None
        self.release = threading.Event()  # set: silent replies end

    @property
    def count(self) -> int:
        return len(self.bodies)


def question_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = question_of(body)
        with fake.lock:
            before = fake.asked[question]
            fake.asked[question] += 1
            fake.bodies.append(body)
            fake.headers.append(dict(self.headers))
            fake.times.append(time.monotonic())
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
        try:
            time.sleep(fake.latency)
            self.answer(body, question, fake.fault(question, before))
        finally:
            with fake.lock:
                fake.under_way -= 1

    def answer(self, body: dict[str, Any], question: str, fault: Any) -> None:
        fake = self.fake
        if fault == "reset":
            self.connection.close()
            self.close_connection = True
        elif fault == "silent":
            fake.release.wait(60)
            self.close_connection = True
        elif fault == "broken":
            self.send(200, b'{"choices": [{"index": 0, "mess')
        elif fault == "cut":
            self.send(200, b'{"choices": [', promised=500)
            self.close_connection = True
        elif isinstance(fault, tuple):
            self.send(fault[0], b'{"error": {"message": "told to fail"}}', headers=fault[1])
        else:
            count = body["n"] if fake.knows_n else 1
            choices = [
                {
                    "index": i,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": fake.says(question, i)},
                    "logprobs": fake.reports(question) if body.get("logprobs") else None,
                }
                for i in range(count)
            ]
            usage = {"prompt_tokens": 5, "completion_tokens": 3 * count}
            self.send(
                200, json.dumps({"model": fake.model or body["model"], "choices": choices, "usage": usage}).encode()
            )

    def send(
        self, code: int, content: bytes, promised: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(promised or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a client that gave up


@contextlib.contextmanager
def listening() -> Iterator[Fake]:
    state = Fake()
    server = Listener(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": state}))
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()

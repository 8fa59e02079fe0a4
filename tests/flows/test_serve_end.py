"""Ctrl-C and SIGTERM to `ril serve` while a form runs: the same ordered end as Cancel. On the way: with proxies set."""

import http.server
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Refuses; counts what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.requestline)
        self.send_error(503)

    do_POST = do_CONNECT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, make_served: Callable[..., Any]) -> Iterator[Any]:
    """A `ril serve` that the tests may end, where the environment names proxies and a home that nobody may touch."""
    asked: list[str] = []
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Proxy,), {"asked": asked}))
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{proxy.server_port}"
    user = tmp_path_factory.mktemp("user")
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy"), url)
    others = {"no_proxy": "", "NO_PROXY": "", "ALL_PROXY": "socks5://127.0.0.1:9", "HOME": str(user)}
    one = make_served(tmp_path_factory.mktemp("end"), **proxies, **others, PREFECT_HOME="")
    yield one
    one.kill()
    proxy.shutdown()
    proxy.server_close()
    assert asked == [], "loopback goes through no proxy"
    assert not (user / ".prefect").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_the_end_of_ril_serve_ends_what_a_form_runs(own: Any, number: signal.Signals) -> None:
    if own.process.poll() is not None:
        own.start()
    key = own.key()
    kept = set(checkpoints(own))
    run = own.submit(JUDGE, settings={"models": {"judge": {"build": {"steps": 5000}}}})
    own.until(lambda: set(checkpoints(own)) - kept, 300, "no checkpoint")
    waits = own.submit(JUDGE, settings={})
    processes = [*own.everything(), *own.workers()]
    told = time.monotonic()
    own.process.send_signal(number)
    assert own.process.wait(60) == 0
    assert time.monotonic() - told < 45
    assert not own.alive(processes), own.log.read_text()[-3000:]
    assert not own.workers()
    assert not (own.project / ".ril" / "prefect" / "environment").exists()

    own.start()
    assert own.key() != key
    assert own.run(run)["state_type"] == "CANCELLED"
    assert own.run(waits)["state_type"] == "CANCELLED", "nothing starts by itself later"
    assert "stopped after step" in own.lines(run)


def checkpoints(own: Any) -> list[Path]:
    return list(own.project.glob(".ril/runs/model@judge/*/step_*/DONE"))

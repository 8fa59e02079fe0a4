"""`ril demo`: the page for its user alone; questions are answered one at a time, on the thread of the engines."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from flows.chat.candidates import ChatError
from flows.chat.demo import MOST_BYTES, Demo, PageQuestion, serve_demo
from stages.corpora.rows import read_questions

FACTS = {"models": [{"name": "ril", "title": "RIL student"}], "left_out": {}}


class Page:
    """A running page with a client that knows its key."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.url, self.key = demo.link.split("#")
        self.client = httpx.Client(trust_env=False, base_url=self.url, timeout=30)
        self.headers = {"Authorization": f"Bearer {self.key}"}

    def ask(self, answer: Callable[[PageQuestion], dict[str, Any]], content: bytes) -> httpx.Response:
        """Sends a question; this thread answers it."""
        replies: list[httpx.Response] = []
        sending = threading.Thread(
            target=lambda: replies.append(self.client.post("ask", content=content, headers=self.headers))
        )
        sending.start()
        self.demo.answer_next(answer, 0.5)
        sending.join(30)
        return replies[0]


@pytest.fixture
def served() -> Iterator[Page]:
    with serve_demo("127.0.0.1", 0, FACTS) as demo:
        yield Page(demo)


def test_only_who_has_the_key_and_comes_from_this_machine_is_answered(served: Page) -> None:
    client = served.client
    assert len(served.key) == 32
    assert client.get("models", headers=served.headers).json() == FACTS
    for headers in ({}, {"Authorization": "Bearer wrong"}, {**served.headers, "Host": "evil.example"}):
        assert client.get("models", headers=headers).status_code == 404
        assert client.post("ask", content=b"{}", headers=headers).status_code == 404
    assert client.get("", headers={"Host": "evil.example"}).status_code == 404
    assert client.get("page.html").status_code == 404
    page = client.get("")
    assert page.status_code == 200
    assert served.key not in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=\"?https?:", page.text)


def test_a_question_is_answered_on_the_thread_of_the_engines(served: Page) -> None:
    seen: list[Any] = []

    def answer(question: PageQuestion) -> dict[str, Any]:
        seen.append((threading.current_thread(), question.text, question.pictures, question.models, question.reference))
        return {"answers": ["ä"]}

    picture = base64.b64encode(b"\x89PNG").decode()
    given = {"question": " What? ", "pictures": [picture], "models": ["ril"], "reference": "7"}
    reply = served.ask(answer, json.dumps(given).encode())
    assert reply.json() == {"answers": ["ä"]}
    assert seen == [(threading.main_thread(), "What?", [b"\x89PNG"], ["ril"], "7")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no json", "Expecting value"),
        (b"[]", "a question is an object"),
        (b'{"question": 7}', "question is no text"),
        (b'{"question": "a", "models": "ril"}', "models is no list of names"),
        (b'{"question": "a", "pictures": ["%%%"]}', "a picture is not in base64"),
        (b"[" * 100_000, ""),
    ],
)
def test_what_the_page_does_not_send_is_refused(served: Page, content: bytes, said: str) -> None:
    reply = served.ask(lambda _: {}, content)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


def test_too_much_is_refused_before_it_is_read(served: Page) -> None:
    place = urlsplit(served.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    connection.putrequest("POST", "/ask")
    for name, value in {**served.headers, "Content-Length": str(MOST_BYTES + 1)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 400
    assert "at most 32 MiB" in json.loads(reply.read())["error"]


def test_a_question_that_cannot_be_asked_is_shown_on_the_page(served: Page) -> None:
    def refuse(_: PageQuestion) -> dict[str, Any]:
        raise ChatError("the question is empty")

    reply = served.ask(refuse, b'{"question": ""}')
    assert (reply.status_code, reply.json()) == (400, {"error": "the question is empty"})


def test_an_error_of_ours_ends_the_demo_and_the_page_says_so(served: Page) -> None:
    def fail(_: PageQuestion) -> dict[str, Any]:
        raise ZeroDivisionError

    replies: list[httpx.Response] = []
    sending = threading.Thread(
        target=lambda: replies.append(served.client.post("ask", content=b"{}", headers=served.headers))
    )
    sending.start()
    with pytest.raises(ZeroDivisionError):
        served.demo.answer_next(fail, 10)
    sending.join(30)
    assert "`ril demo` has ended" in replies[0].json()["error"]
    assert not served.demo.answer_next(fail, 0.01)


@pytest.mark.browser
def test_an_example_of_the_data_is_asked_with_its_pictures(page: Any) -> None:
    example = {"row": "test-1", "question": "What is it?", "reference": "7", "pictures": [draw_picture()]}
    asked: list[PageQuestion] = []

    def answer(question: PageQuestion) -> dict[str, Any]:
        asked.append(question)
        return {"answers": [], "reference": "7"}

    with serve_demo("127.0.0.1", 0, {**FACTS, "examples": [example]}) as demo:
        page.get(demo.link)
        end = time.monotonic() + 30
        while not (buttons := page.find_elements("css selector", "#examples button")):
            assert time.monotonic() < end
            time.sleep(0.1)
        buttons[0].click()
        (shown,) = page.find_elements("css selector", "#pictures img")
        assert shown.get_attribute("naturalWidth") == "3"
        page.find_element("id", "ask").click()
        assert demo.answer_next(answer, 30)
    (question,) = asked
    assert (question.text, question.reference, question.models) == ("What is it?", "7", ["ril"])
    assert question.pictures == [base64.b64decode(example["pictures"][0])]


def draw_picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# --- with engines ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def link(tiny_run: Path) -> Iterator[str]:
    """The link of a `ril demo` that asks base and RIL student."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "demo", "--models", "base,ril"],
        cwd=tiny_run,
        env={**os.environ, "PYTHONPATH": str(tiny_run), "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("page: "), line
        yield line.removeprefix("page: ").strip()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(120)  # it closes three engines: 16 s on two busy cores
        if process.poll() is None:
            process.send_signal(signal.SIGABRT)  # prints where each thread stands
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_models_of_a_run_answer(link: str, tiny_run: Path) -> None:
    question = read_questions(tiny_run / "data" / "questions", "test")[0]
    url, key = link.split("#")
    picture = base64.b64encode(question.images[0]).decode()
    asked = {"question": question.text, "pictures": [picture], "models": ["base", "ril"], "reference": question.answer}
    with httpx.Client(trust_env=False, timeout=300) as client:
        reply = client.post(f"{url}ask", json=asked, headers={"Authorization": f"Bearer {key}"}).json()
    assert [one["name"] for one in reply["answers"]] == ["base", "ril"]
    assert all(not one["fault"] and one["verdict"] in (0, 1) for one in reply["answers"])


@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_the_page_shows_answers_side_by_side(link: str, tiny_run: Path, page: Any) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no chromium")
    question = read_questions(tiny_run / "data" / "questions", "test")[0]
    (tiny_run / "shown.png").write_bytes(question.images[0])
    page.get(link)
    page.find_element("id", "picture").send_keys(str(tiny_run / "shown.png"))
    page.find_element("id", "question").send_keys(question.text)
    page.find_element("id", "reference").send_keys(question.answer)
    page.find_element("id", "ask").click()
    end = time.monotonic() + 300
    while len(shown := page.find_elements("tag name", "article")) < 2:
        assert time.monotonic() < end, page.find_element("id", "state").text
        time.sleep(0.5)
    assert [one.find_element("tag name", "h2").text for one in shown] == ["Base student", "RIL student"]
    assert all("judge: " in one.text for one in shown)
    assert "#" not in page.current_url  # the key is not in the address that a person copies
    assert not [one for one in page.get_log("browser") if one["level"] == "SEVERE"]

"""The key of an endpoint: sent to the endpoint, and written nowhere, whatever goes wrong."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from stages.config.yaml import merge_params, read_yaml

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

TEACHER = "qwen2_5_vl"
KEY_NAME, PLANTED_KEY = "SOMEBODYS_API_KEY", "sk-planted-0123456789abcdef"  # of `ril serve`, tests/flows/conftest.py


class Indiscreet(BaseHTTPRequestHandler):
    """Answers; the first and every fifth time it is broken or refuses, and repeats the key that it was sent."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.headers["authorization"] or ""
        self.seen.append(key)
        number = len(self.seen)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "I see 4."}}
        choices = [{**choice, "index": index} for index in range(body["n"])]
        usage = {"prompt_tokens": 5, "completion_tokens": 3 * body["n"]}
        code, reply = 200, {"model": body["model"], "choices": choices, "usage": usage}
        if number == 1:
            code, reply = 500, {"error": {"message": f"broken while serving {key}"}}
        elif number == 2:
            code, reply = 400, {"error": {"message": f"refused, with key {key}"}}
        content = json.dumps(reply).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def indiscreet() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the keys that it was sent."""
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Indiscreet,), {"seen": seen}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    server.server_close()


def test_a_planted_key_is_sent_and_written_nowhere(served: Any, indiscreet: tuple[str, list[str]]) -> None:
    url, seen = indiscreet
    path = served.project / "params.yaml"
    text = path.read_text()
    remote = {"family": "remote", "endpoint": {"provider": "somebody", "name": "big-1"}}
    engine = {"kind": "openai", "base_url": url, "api_key": KEY_NAME, "concurrency": 1}
    student = {"build": {"vision_steps": 5, "reading_steps": 5, "steps": 5, "warmup_steps": 1}}  # selection reads it
    changed = {"runtime": {"engines": {TEACHER: engine}}, "models": {"student": student}}
    values = merge_params(read_yaml(path), {**changed, "selection": {"teacher": TEACHER}})
    values["models"][TEACHER] = remote
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        run = served.submit(f"teacher@{TEACHER}", settings={})
        ended = served.ended(run, 300)
        assert len(seen) >= 3, served.lines(run)
        assert set(seen) == {f"Bearer {PLANTED_KEY}"}
        said = served.lines(run) + "".join(served.lines(stage["id"]) for stage in served.stage_runs(run))
        assert ended["state_type"] == "FAILED", "one question was refused"
        assert "refused, with key Bearer [the key]" in said
    finally:
        path.write_text(text)
    places = [place for folder in (served.project, served.home) for place in folder.rglob("*") if place.is_file()]
    assert {"params.yaml", "dvc.lock", "prefect.db"} <= {place.name for place in places}
    assert any(place.suffix == ".parquet" and ".ril" in place.parts for place in places), "answers were stored"
    assert [str(place) for place in places if holds(place, PLANTED_KEY)] == []


def holds(place: Path, text: str) -> bool:
    if place.suffix == ".parquet":
        return text in str(pyarrow.parquet.read_table(place).to_pylist())
    return text.encode() in place.read_bytes()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"reason": [f"refused {PLANTED_KEY}"]}), tmp_path / "a.parquet")
    (tmp_path / "a.log").write_text(f"x {PLANTED_KEY} y")
    assert [holds(tmp_path / name, PLANTED_KEY) for name in ("a.parquet", "a.log")] == [True, True]

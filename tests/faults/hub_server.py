"""A hub on this machine: the endpoints that huggingface_hub asks for a snapshot, with the codes of huggingface.co.

Repositories whose names begin with gated, private, missing, disabled, forbidden, busy or broken answer so; `cut` bytes
of a large file are sent before the connection breaks.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.faults.serving import serve_requests

COMMIT = "c" * 40
TOKEN, STRANGER = "hf_member", "hf_stranger"  # tokens of an account with access, and of one without
_API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?/?$")
_FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    files: dict[str, bytes]
    large: tuple[str, ...] = ()  # suffixes of files that are named by their sha256
    cut: int | None = None  # bytes of a large file after which the connection breaks
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and Range of each GET of a file


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Runs the server until the block ends; `hub.url` is its address."""
    with serve_requests(partial(_Answers, hub)) as hub.url:
        yield hub


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *given: Any) -> None:
        self.hub = hub
        super().__init__(*given)

    def log_message(self, *_given: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, _ = self.path.partition("?")
        if found := _API.match(path):
            repository, revision = found[2], found[4] or "main"
            if not self._refuse(repository, revision):
                self._send_json(self._list_tree() if found[3] == "tree" else self._describe(repository))
        elif found := _FILE.match(path):
            if not self._refuse(found[2], found[3]):
                self._send_file(path, found[4])
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"})

    def _refuse(self, repository: str, revision: str) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        kind = repository.split("/")[1].split("-")[0]
        if token not in ("", TOKEN, STRANGER):
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif kind == "gated" and token != TOKEN:
            said = f"Access to {repository} is restricted."
            self._send(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": said})
        elif kind in ("private", "missing") and (token != TOKEN or kind == "missing"):
            code = {"X-Error-Code": "RepoNotFound"} if token else {"X-Error-Message": "Invalid username or password."}
            self._send(404 if token else 401, code)
        elif kind == "disabled":
            self._send(403, {"X-Error-Message": "Access to this resource is disabled."})
        elif kind == "forbidden":
            self._send(403, {"X-Error-Message": "Your country is not served"})
        elif kind == "busy":
            self._send(429, {"Retry-After": "0"})
        elif kind == "broken":
            self._send(500, {})
        elif revision not in ("main", COMMIT):
            self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return False
        return True

    def _describe(self, repository: str) -> dict[str, Any]:
        return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.hub.files]}

    def _list_tree(self) -> list[dict[str, Any]]:
        return [self._describe_file(name, content) for name, content in self.hub.files.items()]

    def _describe_file(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": self._git_name(content)}
        if self._is_large(name):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _is_large(self, name: str) -> bool:
        return name.endswith(self.hub.large) if self.hub.large else False

    def _git_name(self, content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def _send_file(self, path: str, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
            return
        large = self._is_large(name)
        tag = hashlib.sha256(content).hexdigest() if large else self._git_name(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range") or ""
        if self.command == "GET":
            self.hub.asked.append((path, wanted))
        first = int(re.sub(r"\D.*", "", wanted.removeprefix("bytes=")) or 0)
        status = 206 if wanted else 200
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(status, headers, content[first:], self.hub.cut if large and self.command == "GET" else None)

    def _send_json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

"""A hub on this machine that takes uploads: what huggingface_hub sends for one commit of a model, over git LFS.

Owners whose names begin with readonly refuse (403), broken ones answer 500. A repository is made by the first upload.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.faults.serving import serve_requests

WRITER = "hf_writer"  # the token that may write
_MODEL = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(/preupload/main|/commit/main)?$")
_BATCH = re.compile(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch$")


@dataclass
class UploadHub:
    """What the server has taken."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)  # repositories by name
    files: dict[str, bytes] = field(default_factory=dict)  # of the last commit
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    sent: list[str] = field(default_factory=list)  # sha256 of each large file that was sent
    tokens: set[str] = field(default_factory=set)


@contextmanager
def serve_upload_hub() -> Iterator[UploadHub]:
    """Runs the server until the block ends."""
    hub = UploadHub()
    with serve_requests(partial(_Takes, hub)) as hub.url:
        yield hub


class _Takes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: UploadHub, *given: Any) -> None:
        self.hub = hub
        super().__init__(*given)

    def log_message(self, *_given: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        found = _MODEL.match(self.path.partition("?")[0])
        if found is None or found[1] not in self.hub.private:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif not self._refuse(found[1]):
            self._send(200, {"id": found[1], "sha": "a" * 40, "private": self.hub.private[found[1]], "siblings": []})

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        self.hub.blobs[oid] = self._read()
        self.hub.sent.append(oid)
        self._send(200, {})

    def do_POST(self) -> None:
        path, content = self.path.partition("?")[0], self._read()
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if not self._refuse(name):
                there = name in self.hub.private
                self.hub.private.setdefault(name, asked.get("visibility") == "private")
                self._send(409 if there else 200, {"url": f"{self.hub.url}/{name}"})
        elif batch := _BATCH.match(path):
            self._send(200, {"transfer": "basic", "objects": list(map(self._plan, json.loads(content)["objects"]))})
            assert batch
        elif (found := _MODEL.match(path)) and not self._refuse(found[1]):
            self._take(found[1], found[2] or "", content)

    def _take(self, name: str, what: str, content: bytes) -> None:
        if what.startswith("/preupload"):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(content)["files"]
            ]
            self._send(200, {"files": files})
            return
        self.hub.files = {}
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})

    def _plan(self, one: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes; nowhere if it is here."""
        plan = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] in self.hub.blobs:
            return plan
        return {**plan, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}", "header": {}}}}

    def _refuse(self, name: str) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.tokens.add(token)
        if token != WRITER:
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif name.startswith("readonly"):
            self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name.startswith("broken"):
            self._send(500, {"error": "out of order"})
        else:
            return False
        return True

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while length := int(self.rfile.readline().strip() or b"0", 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, text in given.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

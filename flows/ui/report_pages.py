"""The folder reports/ for browsers: a page from http may not open files."""

import http.server
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flows.ui.prefect_server import list_host_names

_TOKEN_BYTES = 16


@contextmanager
def serve_reports(root: Path, host: str, port: int, shown: str) -> Iterator[str]:
    """Lets browsers read the files in reports/ for this block; yields the address of the report at the name `shown`.

    The address begins with a random folder, made at each start: who does not know it reads nothing.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    handler: Any = partial(_Reports, folder=root / "reports", token=token, names=list_host_names(host))
    server = http.server.ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{shown}:{server.server_port}/{token}/report/index.html"
    finally:
        server.shutdown()
        server.server_close()


class _Reports(http.server.SimpleHTTPRequestHandler):
    """Files inside the folder: no listing, no link that leads out of it, no other host name."""

    timeout = 60.0  # seconds for a request to arrive

    def __init__(self, *arguments: Any, folder: Path, token: str, names: list[str]) -> None:
        self.folder, self.token, self.names = folder.resolve(), token, names
        super().__init__(*arguments, directory=str(folder))

    def send_head(self) -> Any:
        """The opened file, or None after an answer of 404."""
        start = f"/{self.token}/"
        if not self.path.startswith(start) or self._host() not in self.names:
            return self.send_error(HTTPStatus.NOT_FOUND)
        self.path = self.path[len(start) - 1 :]
        place = Path(self.translate_path(self.path)).resolve()
        if not place.is_relative_to(self.folder) or not place.is_file():
            return self.send_error(HTTPStatus.NOT_FOUND)
        return super().send_head()

    def _host(self) -> str:
        return re.sub(r":\d+$", "", self.headers.get("Host", "")).strip("[]").lower()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows what the forms do."""

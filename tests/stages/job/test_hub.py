"""Downloads from a hub that is silent, slow or broken end, and say so."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ASK = """
import sys
from stages.job import hub
from stages.vlm.checkpoint import find_hub_folder
hub.SILENCE_SECONDS = 2.0
find_hub_folder("somebody/model", sys.argv[1])
"""


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:  # the end of the test
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize("revision", ["main", "0" * 40])
def test_a_silent_hub_does_not_hold_a_stage(
    silent_hub: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HF_ENDPOINT", silent_hub), ("HF_HOME", str(tmp_path)), ("RIL_ALLOW_DOWNLOADS", "1")):
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", ASK, revision], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "somebody/model at " in done.stderr.splitlines()[-1]
    assert "the hub could not be asked (ReadTimeout): try again" in done.stderr.splitlines()[-1]

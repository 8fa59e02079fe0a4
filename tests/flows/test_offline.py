"""The guard under which CI does the smoke run: it lets loopback through, and refuses and notes everything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def under_guard(root: Path, log: Path, code: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(root / ".ci" / "offline"), "RIL_OFFLINE_LOG": str(log)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/', timeout=5)",
    ],
)
def test_a_connection_to_another_machine_is_refused_and_noted(root: Path, tmp_path: Path, code: str) -> None:
    log = tmp_path / "attempts"
    result = under_guard(root, log, code)
    assert result.returncode != 0
    assert "off-line run: no connection to" in result.stderr
    assert "192.0.2.1" in log.read_text() or "example.invalid" in log.read_text()


def test_loopback_works(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "attempts"
    code = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(('localhost', s.getsockname()[1]), timeout=5)\n"
        "socket.getaddrinfo(socket.gethostname(), 0)"
    )
    result = under_guard(root, log, code)
    assert result.returncode == 0, result.stderr
    assert not log.exists()

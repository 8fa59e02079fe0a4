"""Proxies, the hub, and the Prefect server. Each question has a time limit."""

import importlib.metadata
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from flows.checks.finding import Finding
from flows.flow_run import find_server_fault
from flows.loopback import list_unusable_proxies
from stages.config.params import Params
from stages.job.hub import DOWNLOADS, allows_downloads

_ASK_SECONDS = 5.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def check_proxies() -> Iterator[Finding]:
    """Yields the proxies that are set, without passwords, and those that can't be used."""
    for name in list_unusable_proxies(os.environ):
        yield Finding(
            "proxy", "note", name, "names a SOCKS proxy, which needs a package", "pip install socksio, or unset it"
        )
    named = {name: os.environ[name] for name in _PROXIES if os.environ.get(name)}
    told = ", ".join(f"{name}={hide_login(value)}" for name, value in named.items())
    yield Finding("proxy", "fine", "", told or "none is set")


def hide_login(url: str) -> str:
    """Returns `url` without user name, password and query."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        place = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        place = parts.hostname or ""
    return urlunsplit((parts.scheme, place, parts.path, "", "")).removeprefix("//")


def check_hub(needed: bool) -> Finding:
    """Returns whether the hub answers, where downloads are allowed; `needed`: something is to be downloaded."""
    if not allows_downloads():
        return Finding("hub", "note", DOWNLOADS, "is not 1: nothing is downloaded")
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not url.startswith(("http://", "https://")):
        return Finding("hub", "missing", "HF_ENDPOINT", f"{url[:80]} is no address", "correct or unset it")
    try:
        with urllib.request.urlopen(f"{url}/api/models?limit=1", timeout=_ASK_SECONDS):  # nosec B310: http(s) only
            return Finding("hub", "fine", hide_login(url), "answers")
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        remedy = f"look at network and proxy, or unset {DOWNLOADS}"
        return Finding("hub", "missing" if needed else "note", hide_login(url), f"does not answer ({why})", remedy)


def check_prefect(params: Params, home: Path) -> Iterator[Finding]:
    """Yields Prefect's version, the server that PREFECT_API_URL names, and the database of `ril serve` in `home`."""
    version = importlib.metadata.version("prefect")
    url = os.environ.get("PREFECT_API_URL")
    fault = find_server_fault(url, params.runtime.prefect_probe_seconds) if url else None
    if fault:
        yield Finding(
            "prefect", "note", "PREFECT_API_URL", fault, "stages run without it; start it, or unset the variable"
        )
    else:
        yield Finding(
            "prefect", "fine", "", f"{version}; {f'{hide_login(str(url))} answers' if url else 'no server is named'}"
        )
    yield _check_database(home / "prefect.db")


def _check_database(file: Path) -> Finding:
    if not file.is_file():
        return Finding("prefect", "fine", "", "no database yet; ril serve makes it")
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1.0) as opened:
            (revision,) = opened.execute("select version_num from alembic_version").fetchone() or ("none",)
    except sqlite3.Error as error:
        return Finding(
            "prefect",
            "note",
            str(file),
            f"can't be read ({error})",
            "end ril serve and move the file away: it holds history only",
        )
    return Finding("prefect", "fine", str(file), f"{file.stat().st_size / 1e6:.1f} MB, revision {revision}")

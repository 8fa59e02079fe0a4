"""Downloads from the hub, each request with a time limit."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SILENCE_SECONDS = 60.0  # without a byte from the hub; a whole download may take any time


def download_snapshot(
    name: str,
    *,
    kind: str = "model",
    revision: str,
    patterns: Sequence[str] | None = None,
    ignored: Sequence[str] | None = None,
    offline: bool = False,
) -> Path:
    """Returns the folder of a model or data set of the hub at `revision`; with `offline` only what is on disk.

    `patterns` are the files that are taken, `ignored` those that are not.

    The library has no time limit for questions about a repository: a hub that accepts a connection and stays silent
    held a stage for ever (huggingface_hub 2.4, measured). Raises what the library raises; after silence that is the
    error for a snapshot that is not on disk.
    """
    from huggingface_hub import set_client_factory, snapshot_download

    set_client_factory(_make_client)
    return Path(
        snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
            ignore_patterns=None if ignored is None else list(ignored),
            local_files_only=offline,
        )
    )


def _make_client() -> Any:
    """The library's own client, with a limit for each request that has none."""
    client = importlib.import_module("huggingface_hub.utils._http").default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _limit_request]}
    return client


def _limit_request(request: Any) -> None:
    """Fills in the limits that the caller left open; it asks for none by name, so a limit of the client is not used."""
    given = request.extensions.get("timeout", {})
    limits = {part: given.get(part) or SILENCE_SECONDS for part in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}

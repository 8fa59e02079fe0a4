"""Downloads from the hub: each request has a time limit, each refusal is one line with its remedy."""

import errno
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.config.plain import make_printable
from stages.job.failure import Failure, find_full_disk

SILENCE_SECONDS = 60.0  # without a byte from the hub; a whole download may take any time
DOWNLOADS = "RIL_ALLOW_DOWNLOADS"
_NOUNS = {"model": "model", "dataset": "data set"}
_PAGES = {"model": "", "dataset": "datasets/"}


class HubError(Failure, FileNotFoundError):
    """A model or data set of the hub is not on this machine and could not be fetched; trying again may help."""


class HubRefusal(HubError):
    """What was asked for cannot be had as it was asked for: parameters, access or environment must change first."""


def allows_downloads() -> bool:
    """Whether the user allows downloads: RIL_ALLOW_DOWNLOADS=1."""
    return os.environ.get(DOWNLOADS) == "1"


def download_snapshot(
    name: str,
    *,
    kind: str = "model",
    revision: str,
    patterns: Sequence[str] | None = None,
    ignored: Sequence[str] | None = None,
) -> Path:
    """Returns the folder of a model or data set of the hub at `revision`; downloads only with RIL_ALLOW_DOWNLOADS=1.

    `patterns` are the files that are taken, `ignored` those that are not. A broken connection is taken up again where
    it broke; a later call asks for what is not complete. Raises HubRefusal or HubError, with a message of one line that
    ends with a remedy.

    The library has no time limit for questions about a repository: a hub that accepts a connection and stays silent
    held a stage for ever (huggingface_hub 2.4, measured).
    """
    from huggingface_hub import set_client_factory, snapshot_download

    set_client_factory(make_hub_client)
    try:
        return Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                ignore_patterns=None if ignored is None else list(ignored),
                local_files_only=not allows_downloads(),
            )
        )
    except Exception as error:  # HTTP libraries have errors without a common class; each is told, none is dropped
        kind_of_error, said = _explain(error, f"{_NOUNS[kind]} {name!r} at {revision!r}", _PAGES[kind] + name)
        raise kind_of_error(said) from error


def _explain(error: Exception, what: str, page: str) -> tuple[type[HubError], str]:
    """Returns the class and the message for an error of the library; `what` was asked for, its page is `page`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    cache = make_printable(str(constants.HF_HUB_CACHE))
    if find_full_disk(error) is not None:
        return HubError, (
            f"{what}: the disk is full while it is downloaded to {cache}; free space there or set HF_HOME to another "
            "disk, and run it again: files that are complete are kept"
        )
    if isinstance(error, HFValidationError):
        return HubRefusal, f"{what}: no id of the hub ({_shorten(error)}); correct `hub`"
    response = next((one.response for one in _iter_causes(error) if getattr(one, "response", None) is not None), None)
    if response is not None:
        return _explain_response(response, what, f"{constants.ENDPOINT}/{page}")
    if not allows_downloads() and isinstance(error, LocalEntryNotFoundError):
        how = "only in part" if isinstance(error, IncompleteSnapshotError) else "not"
        return HubRefusal, f"{what} is {how} on this machine, and downloads are off; set {DOWNLOADS}=1 to download it"
    causes = list(_iter_causes(error))
    cause = next((one for one in causes if type(one).__module__.startswith("httpx")), causes[-1])
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in causes):
        return HubRefusal, f"{what} is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub; unset it"
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubRefusal, (
            f"{what}: nothing can be written to {cache} ({cause.strerror}); set HF_HOME to a folder of yours"
        )
    return HubError, (
        f"{what} is not whole on this machine, and the hub at {constants.ENDPOINT} could not be asked "
        f"({type(cause).__name__}: {_shorten(cause)}); check network and proxy and run it again: files that are "
        "complete are kept"
    )


def _explain_response(response: Any, what: str, page: str) -> tuple[type[HubError], str]:
    """Returns the class and the message for what the hub has answered: its codes are those of huggingface.co."""
    from huggingface_hub import get_token

    status, code = int(response.status_code), response.headers.get("X-Error-Code")
    said, login = str(response.headers.get("X-Error-Message") or ""), "`hf auth login` or HF_TOKEN"
    known = get_token() is not None
    if code == "GatedRepo":
        who = "the account of your token has no access" if known else "no token is set"
        then = "wait for its owner's approval if it needs one" if known else f"then log in with {login}"
        return HubRefusal, f"{what} is gated, and {who}: accept its terms at {page}, {then}"
    if code == "RevisionNotFound":
        return HubRefusal, f"{what}: the hub has no such revision; correct `revision`"
    if said == "Access to this resource is disabled.":
        return HubRefusal, f"{what} was disabled by the hub ({page}); take another"
    if status == 401 and (known and said.startswith("Invalid credentials")):
        return HubRefusal, f"{what}: the hub does not accept your token; replace it with {login}, or remove it"
    if code == "RepoNotFound" or status in (401, 404):
        hidden = "hidden from the account of your token" if known else "private"
        then = "use another account with" if known else "log in with"
        return HubRefusal, (
            f"{what}: the hub has none of that name, or it is {hidden}; correct `hub`, or {then} {login}"
        )
    if status == 403:
        return HubRefusal, f"{what}: the hub forbids it ({_shorten(said or response.reason_phrase)}); check your token"
    if status == 429:
        return HubError, f"{what}: the hub answers 429, too many requests; wait some minutes, or log in with {login}"
    return HubError, f"{what}: the hub answers {status} {_shorten(response.reason_phrase)}; try again later"


def _iter_causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shorten(error: object) -> str:
    return make_printable(" ".join(str(error).split()))[:160]


def make_hub_client() -> Any:
    """The library's own client, with a limit for each request that has none."""
    client = importlib.import_module("huggingface_hub.utils._http").default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _limit_request]}
    return client


def _limit_request(request: Any) -> None:
    """Fills in the limits that the caller left open; it asks for none by name, so a limit of the client is not used."""
    given = request.extensions.get("timeout", {})
    limits = {part: given.get(part) or SILENCE_SECONDS for part in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}

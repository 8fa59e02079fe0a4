"""A stage as a flow run on the Prefect server that PREFECT_API_URL names, when that answers.

The exit code is the work's, never Prefect's: a server that is gone costs a warning and a few seconds.
"""

import base64
import http.client
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from flows.environment import TRIGGER
from flows.loopback import is_loopback, list_unusable_proxies
from flows.run_tags import list_run_tags
from flows.signals import keep_own_handler
from stages.config.runtime import Runtime
from stages.job.progress import Progress

if TYPE_CHECKING:
    from flows.work import Work  # 0.4 s of imports that the process which tells of a run needs none of

_LEAVE_SECONDS = 12.0  # after the work has ended, Prefect gets this long to say so to its server
_VERSION_BYTES = 1000  # more is no version
_work: ContextVar["Work"] = ContextVar("work")


def find_server_fault(url: str, seconds: float) -> str | None:
    """Why no work can be shown at `url` (ending in /api); None when a Prefect server answers there within `seconds` and
    takes the key in PREFECT_API_AUTH_STRING.
    """
    found: list[str | None] = []

    def ask() -> None:
        found.append(_ask_version(url.rstrip("/"), seconds))

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because looking up a name has no time limit
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no Prefect server answers at {url}"


def server_answers(url: str, seconds: float) -> bool:
    """Whether `find_server_fault` finds nothing."""
    return find_server_fault(url, seconds) is None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follows none: the key would go along to another address."""


def _ask_version(url: str, seconds: float) -> str | None:
    """Asks for the version, which needs the key; `/health` doesn't."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {}
    if key := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(key.encode()).decode()}"
    elif token := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(f"{url}/admin/version", headers=headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            version = json.loads(answer.read(_VERSION_BYTES))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"the Prefect server at {url} refuses the key; PREFECT_API_AUTH_STRING has to hold it"
        return f"no Prefect server answers at {url}, but something that says {error.code}"
    except (OSError, http.client.HTTPException, ValueError):  # not reachable, not an address, or no JSON
        return f"no Prefect server answers at {url}"
    return None if isinstance(version, str) else f"no Prefect server answers at {url}"


def perform(stage: str, item: str | None = None) -> None:
    """What every flow does: the work that this process was started for, shown in the UI.

    Raises what the work raises, and LookupError when the process was started for other work or for none.
    """
    from flows.display import FlowProgress, mute_prefect

    work = _work.get(None)
    if work is None or (work.job.stage, work.job.item) != (stage, item):
        raise LookupError(f"flow {stage} runs a stage that flows/run.py prepared; start it with: dvc repro {stage}")
    try:
        with keep_own_handler():
            work.run(FlowProgress())
    finally:
        if not server_answers(os.environ["PREFECT_API_URL"], work.job.block(Runtime).prefect_probe_seconds):
            mute_prefect()  # it is about to report to a server that is gone, with a traceback for each attempt


def make_trigger_tag(run: str) -> str:
    """The tag of the stages' flow runs that were started by the form's flow run `run`."""
    return f"started-by-{run[:8]}"


def run_as_flow(work: "Work", exit_code: Callable[[BaseException | None], int]) -> None:
    """Does `work` as a flow run; without one when the server fails before the work starts.

    Raises what the work raises. `exit_code` prints an error and returns the process's exit code; it is used when the
    work has ended but Prefect does not, and the process has to leave without it.
    """
    threading.Thread(target=_leave_without_prefect, args=(work, exit_code), daemon=True).start()
    _work.set(work)
    try:
        _start_flow(work)
    except Exception as error:
        if work.error is not None:
            raise work.error from None
        if work.started:
            _warn(f"the work is done, but Prefect could not record it: {_shorten_error(error)}")
        else:
            _warn(f"no flow run, because the Prefect server failed: {_shorten_error(error)}")
    if not work.started:
        work.run(Progress())


def _start_flow(work: "Work") -> None:
    if is_loopback(os.environ["PREFECT_API_URL"]):
        for name in list_unusable_proxies(os.environ):
            del os.environ[name]
    from prefect import tags

    from flows.catalog import stage_flow

    flow = stage_flow(work.job.definition, perform)
    name = os.environ.get("DVC_STAGE", work.job.name)
    labels = [os.environ[key] for key in ("DVC_EXP_NAME",) if os.environ.get(key)]
    labels += list_run_tags(work.job.root)
    labels += [make_trigger_tag(os.environ[TRIGGER])] if os.environ.get(TRIGGER) else []
    with tags(work.job.stage, *labels):
        flow.with_options(flow_run_name=name)(*([work.job.item] if work.job.item else []))


def _leave_without_prefect(work: "Work", exit_code: Callable[[BaseException | None], int]) -> None:
    work.ended.wait()
    threading.Event().wait(_LEAVE_SECONDS)
    _warn(f"the work is done, but the Prefect server has not answered for {_LEAVE_SECONDS:.0f} s; leaving without it")
    code = exit_code(work.error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _shorten_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)

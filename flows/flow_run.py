"""A stage as a flow run on the Prefect server that PREFECT_API_URL names, when that answers.

The exit code is the work's, never Prefect's: a server that is gone costs a warning and a few seconds.
"""

import os
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextvars import ContextVar

from flows.environment import TRIGGER
from flows.signals import keep_own_handler
from flows.work import Work
from stages.config.runtime import Runtime
from stages.job.progress import Progress

_LEAVE_SECONDS = 12.0  # after the work has ended, Prefect gets this long to say so to its server
_work: ContextVar[Work] = ContextVar("work")


def server_answers(url: str, seconds: float) -> bool:
    """Whether a Prefect server answers at `url` (ending in /api) within `seconds`."""
    healthy = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=seconds) as answer:
                if answer.status == 200:
                    healthy.set()
        except (OSError, ValueError):  # not reachable, or not an address: both mean no server
            return

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because looking up a name has no time limit
    thread.start()
    thread.join(seconds)
    return healthy.is_set()


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


def run_as_flow(work: Work, exit_code: Callable[[BaseException | None], int]) -> None:
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


def _start_flow(work: Work) -> None:
    from prefect import tags

    from flows.catalog import stage_flow

    flow = stage_flow(work.job.definition, perform)
    name = os.environ.get("DVC_STAGE", work.job.name)
    labels = [os.environ[key] for key in ("DVC_EXP_NAME",) if os.environ.get(key)]
    labels += [make_trigger_tag(os.environ[TRIGGER])] if os.environ.get(TRIGGER) else []
    with tags(work.job.stage, *labels):
        flow.with_options(flow_run_name=name)(*([work.job.item] if work.job.item else []))


def _leave_without_prefect(work: Work, exit_code: Callable[[BaseException | None], int]) -> None:
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

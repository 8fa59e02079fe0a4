"""The end of what forms have started, when `ril serve` ends: as Cancel ends it, and by force where that fails."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from flows.flow_run import server_answers
from flows.ui.forms_runner import make_project_tag
from flows.ui.run_locks import list_alive

_CANCEL_SECONDS = 40.0  # flows/dvc/repro.py kills a stage 25 s after it was told to end; Prefect notices within 10
_TOLD_SECONDS = 30.0
_ANSWER_SECONDS = 5.0
_PAUSE_SECONDS = 0.5


def end_runs(root: Path, runner: int) -> None:
    """Cancels the runs of the project's forms and waits until no process of theirs is left.

    Three attempts, with a time limit each: Prefect's Cancel (runs that wait are cancelled too), SIGTERM to the
    processes of the runs that process `runner` has started, and SIGKILL to them and to all that descends from them.
    """
    if list_alive(root, runner):
        print(f"ending what runs; at most {_CANCEL_SECONDS + _TOLD_SECONDS:.0f} s", flush=True)
    ending = threading.Thread(target=_cancel_runs, args=(root, runner), daemon=True)  # a server may never answer
    ending.start()
    ending.join(_CANCEL_SECONDS)
    for process in list_alive(root, runner):
        os.kill(process, signal.SIGTERM)
    end = time.monotonic() + _TOLD_SECONDS
    while (left := list_alive(root, runner)) and time.monotonic() < end:
        time.sleep(_PAUSE_SECONDS)
    for process in left:
        print(f"warning: process {process} and what it started did not end; they are killed", file=sys.stderr)
        for one in [psutil.Process(process), *psutil.Process(process).children(recursive=True)]:
            one.kill()


def _cancel_runs(root: Path, runner: int) -> None:
    """Cancels until nothing is left to cancel and no process of a run is alive; at once when the server is gone."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType
    from prefect.states import Cancelled, Cancelling

    if not server_answers(os.environ["PREFECT_API_URL"], _ANSWER_SECONDS):
        return
    forms = DeploymentFilter.model_validate({"tags": {"all_": [make_project_tag(root)]}})
    unfinished = [kind for kind in StateType if kind not in TERMINAL_STATES]
    asked = FlowRunFilter.model_validate({"state": {"type": {"any_": unfinished}}})
    with get_client(sync_client=True) as client:
        while (runs := client.read_flow_runs(deployment_filter=forms, flow_run_filter=asked)) or list_alive(
            root, runner
        ):
            for run in runs:
                kind = run.state and run.state.type
                if kind == StateType.SCHEDULED:
                    client.set_flow_run_state(
                        run.id, Cancelled(message="`ril serve` ended before it began"), force=True
                    )
                elif kind != StateType.CANCELLING:
                    client.set_flow_run_state(run.id, Cancelling(message="`ril serve` was told to end"))
            time.sleep(_PAUSE_SECONDS)

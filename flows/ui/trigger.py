"""What the Prefect UI starts: dvc, for one stage or for all. `flows/ui/forms_runner.py` makes a deployment of it for
each.

With the values of params.yaml dvc runs in the workspace, so that dvc.lock is true whoever started a stage; with others
it runs an experiment in a copy. A trigger computes nothing: a stage's process is started by dvc and is a flow run of
its own.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Completed, Failed, Running
from pydantic import Field

from flows.checks.preflight import find_missing, format_missing, starting_checked
from flows.detach_output import detach_output
from flows.dvc import repro as dvc
from flows.dvc.outcome import StageLog, make_outcome_rows
from flows.dvc.private_state import SharedState
from flows.environment import prepare_children
from flows.flow_run import make_trigger_tag
from flows.git import GitError
from flows.lockfile import read_locked_stages
from flows.ui.forms import MOST_JOBS, NO_PROFILE
from flows.ui.forms_runner import REPORT
from flows.ui.plan import RunPlan, check_project, make_plan
from flows.ui.run_locks import hold_run_lock, mark_abandoned
from stages.config.yaml import ParamsError

BUSY_SECONDS = 5.0  # between two attempts while another dvc works on the same files
BUSY_HOURS = 24.0
_STAGES_HELP = "What DVC ran, what it skipped, and why; a stage that is not listed was up to date"
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


@flow(name="start", persist_result=False)
def start(
    root: str,
    target: str,
    settings: dict[str, Any] | None = None,
    upstream: bool = True,
    force: bool = False,
    profile: str = NO_PROFILE,
    jobs: Annotated[int, Field(ge=1, le=MOST_JOBS)] = 1,
) -> State[Any]:
    """Runs a stage, or everything, through DVC.

    Args:
        root: Folder of the project that the form was made for; the run refuses to work in another.
        target: Stage such as `ril` or `teacher@internvl3`, or `pipeline`.
        settings: Values as in params.yaml; what is left out stays.
        upstream: Whether the stages before it are brought up to date first.
        force: Whether it runs even when nothing changed.
        profile: Profile that is laid over params.yaml for this run.
        jobs: How many stages run at a time in the workspace.
    """
    detach_output()
    prepare_children(str(runtime.flow_run.id))
    folder = Path.cwd()
    try:
        check_project(root)
        mark_abandoned(folder)
        plan = make_plan(folder, target, settings or {}, profile)
        if missing := find_missing(folder, plan.params, plan.targets, single=not upstream, force=force):
            return _refuse(format_missing(missing))
        with starting_checked(), hold_run_lock(folder, str(runtime.flow_run.id)):
            return _carry_out(folder, plan, dvc.Targets(plan.targets, not upstream, force), jobs)
    except (ParamsError, GitError, SharedState, dvc.NestedRun, dvc.DvcFailed) as error:
        return Failed(message="; ".join(str(error).splitlines()))


def _refuse(told: str) -> State[Any]:
    """Shows what is missing in the run's log, a line each, and in its state."""
    for line in told.splitlines():
        get_run_logger().error("%s", line)
    return Failed(message=told)


@dataclass(frozen=True)
class _RunOptions:
    """How a plan is carried out."""

    targets: dvc.Targets
    jobs: int
    experiment: str | None  # its name; None for a run in the workspace


def _carry_out(root: Path, plan: RunPlan, targets: dvc.Targets, jobs: int) -> State[Any]:
    log = get_run_logger()
    experiment = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:4]}" if plan.changes else None
    if experiment and jobs > 1:
        log.warning("an experiment runs one stage after the other, not %d at a time", jobs)
    for change in plan.changes:
        log.info("%s", change)
    lock = read_locked_stages(root)
    stale, seen, code = _run_when_free(root, plan, _RunOptions(targets, jobs, experiment))
    rows = make_outcome_rows(stale, seen.stages, lock, lock if experiment else read_locked_stages(root))
    if rows:
        create_table_artifact(rows, key="stages", description=_STAGES_HELP)
    if code in STOPPED:
        _cancel_stages()
        APILogHandler().flush()
        signal.raise_signal(signal.SIGTERM)  # Prefect's handler, back in its place, tells a cancel from a crash
    if code:
        return Failed(message=f"dvc ended with {code}: {seen.last_error or 'see the log'}")
    if experiment:
        _show_experiment(root, experiment, plan)
        return Completed(message=f"Experiment {experiment}; to adopt it: dvc exp apply {experiment}")
    report = os.environ.get(REPORT)
    if report and (root / "reports" / "report" / "index.html").is_file():
        create_link_artifact(
            report, link_text="Report", key="report", description="The page about the state of the workspace"
        )
    ran = [stage for stage, word in seen.stages.items() if word == "ran"]
    return Completed(message=f"Ran {', '.join(ran)}; dvc.lock says so" if ran else "Everything was up to date")


def _run_when_free(root: Path, plan: RunPlan, manner: _RunOptions) -> tuple[dict[str, list[Any]], StageLog, int]:
    """What was out of date, what dvc did, its exit code; retried while another dvc holds the same files, not after
    failure.
    """
    log = get_run_logger()
    end, said = time.monotonic() + BUSY_HOURS * 3600, None
    while True:
        stale, seen, code = _attempt(root, plan, manner)
        if not code or code in STOPPED or seen.busy is None or time.monotonic() > end:
            if said:
                _show_state(Running())
            return stale, seen, code
        if seen.busy != said:
            said = seen.busy
            log.warning("another run works on %s; waiting", said)
            _show_state(
                Running(name="Waiting", message=f"Another run works on {said}; tried again every {BUSY_SECONDS:.0f} s")
            )
        time.sleep(BUSY_SECONDS)


def _attempt(root: Path, plan: RunPlan, manner: _RunOptions) -> tuple[dict[str, list[Any]], StageLog, int]:
    log = get_run_logger()
    seen = StageLog(log.info)
    try:
        stale = dvc.read_status(root, plan.targets, single=manner.targets.single)
    except dvc.DvcFailed as error:
        seen.write(f"{error}\n")
        if seen.busy is None:
            raise
        return {}, seen, 1
    for stage in stale:
        log.info("out of date: %s", stage)
    if manner.experiment:
        code = dvc.run_experiment(root, manner.experiment, plan.overrides, manner.targets, output=seen)
    else:
        code = dvc.run_repro(root, manner.targets, jobs=manner.jobs, output=seen)
    return stale, seen, code


def _show_experiment(root: Path, name: str, plan: RunPlan) -> None:
    changes = "\n".join(f"    {change}" for change in plan.changes)
    try:
        compared = dvc.read_differences(root, name)
    except dvc.DvcFailed as error:
        compared = str(error)  # the experiment is there all the same
    text = f"Adopt it with\n\n    dvc exp apply {name}\n\nChanged values:\n\n{changes}\n\n{compared}"
    create_markdown_artifact(text, key="experiment", description=f"Experiment {name}")


def _show_state(state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(runtime.flow_run.id, state, force=True)


def _cancel_stages() -> None:
    """Marks the flow runs of the stages that this run's dvc had started; their processes have ended."""
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter.model_validate({"tags": {"all_": [make_trigger_tag(str(runtime.flow_run.id))]}})
        for run in client.read_flow_runs(flow_run_filter=mine):
            if run.state is None or not run.state.is_completed():
                client.set_flow_run_state(
                    run.id, Cancelled(message="Cancelled with the run that started it"), force=True
                )

"""Runs one stage, once, in this process. `dvc.yaml` calls it.

    python -m flows.run <stage> [item]      e.g.  python -m flows.run teacher internvl3
    python -m flows.run [<stage>] --help

Without an item, that of DVC_STAGE, which DVC sets for the commands of its stages: in a command of dvc.yaml an id would
be read by a shell.

With a Prefect server at PREFECT_API_URL the stage is a flow run there; without one it shows a progress bar here, and
started by `ril run` it keeps a journal, which becomes a flow run.
With `runtime.launcher` (or `ril run --on slurm`) this process submits a job that runs the stage, and waits for it.
With `runtime.processes` above 1 a training stage starts the other processes itself; started by torchrun or srun on
several machines, only the first rank is this stage, the others train along.
Exit code: 0 the work is done, 1 it failed, 2 parameters, inputs or data are unusable, or something is missing, 3 a cap
of `budget` is used up, 130 or 143 it was stopped.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flows.closure import ComputedImport
from flows.copies import list_absences
from flows.describe import describe_all, describe_stage
from flows.dvc.cut_lock import is_cut, keep_whole_lock
from flows.dvc.private_state import SharedState, use_private_state
from flows.environment import prepare, print_any_text
from flows.flow_run import find_server_fault, run_as_flow
from flows.git import GitError
from flows.gpu_hours import count_gpu_hours
from flows.jobs import UnknownTarget
from flows.launcher import is_job
from flows.rank_places import map_slurm_variables
from flows.rank_processes import follow, is_follower
from flows.room import NoRoom, explain_write_error
from flows.run_journal import JOURNALS, run_with_journal
from flows.signals import cancel_alarms, die_with_parent, end_well_on_signals
from flows.slurm.exchange import run_in_job
from flows.slurm.request import submits
from flows.slurm.submission import submit_stage
from flows.temporary_files import ForeignFolder, keep_temporary_files
from flows.watched_files import Unwatchable
from flows.work import InputsMoved, Unlisted, Work
from stages.config.runtime import Runtime
from stages.config.table import STAGES
from stages.config.yaml import ParamsError
from stages.corpora.source import UnusableData
from stages.job.failure import Failure
from stages.job.hub import HubRefusal
from stages.job.job import MissingInput
from stages.job.progress import Progress
from stages.job.spending import BUDGET_CODE, BudgetReached
from stages.job.stop import STOP
from stages.vlm.contents import RefusedCheckpoint

_LOCK_SECONDS = 10  # for another dvc to write the rest of dvc.lock; it takes a second


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stage that `arguments` name and returns the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = dict(os.environ)  # before anything is set for this machine
    print_any_text()
    root = Path.cwd()
    names = [argument for argument in arguments if not argument.startswith("-")]
    if "-h" in arguments or "--help" in arguments:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a traceback
        print(describe_stage(names[0], root) if names and names[0] in STAGES else describe_all())
        return 0
    if len(names) != len(arguments) or not 1 <= len(names) <= 2:
        print(f"error: expected a stage and at most one item, got {' '.join(arguments) or 'nothing'}", file=sys.stderr)
        print(describe_all(), file=sys.stderr)
        return 2
    os.environ.update(map_slurm_variables(os.environ))
    if is_follower():
        return follow(names[0])
    end_well_on_signals()
    prepare()
    try:
        if "DVC_STAGE" in os.environ and not _has_all(root):
            return 2
        work = Work(names[0], names[1] if len(names) == 2 else _find_item(names[0]), root)
    except (ParamsError, UnknownTarget, MissingInput, Unwatchable, Unlisted, ComputedImport, NoRoom) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    try:
        with keep_temporary_files():
            return _run(work, given)
    except (ForeignFolder, SharedState) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _has_all(root: Path) -> bool:
    """Whether nothing is missing for what dvc is about to run, this stage among it; else says what."""
    from flows.checks.preflight import check_first_start, format_missing  # local import: 0.2 s

    if missing := check_first_start(root):
        print(f"error: {format_missing(missing)}", file=sys.stderr)
    return not missing


def _count_gpus(work: Work) -> int:
    from flows.checks.gpus import count_claimed_gpus, count_gpus  # local import: most stages have no cap

    if "gpu_hours" not in work.job.spending.caps:
        return 0
    return count_claimed_gpus(work.params, work.job.name)[0] or count_gpus()


def _find_item(stage: str) -> str | None:
    """The item of which DVC runs `stage`: DVC_STAGE is `teacher@internvl3`, or `../dvc.yaml:teacher@internvl3` when dvc
    was started in another folder.
    """
    name, _, item = os.environ.get("DVC_STAGE", "").rpartition(":")[2].partition("@")
    return item if item and name == stage else None


def _run(work: Work, given: Mapping[str, str]) -> int:
    if is_job():
        pass  # its submitter does what follows, and ends it
    elif "DVC_STAGE" in os.environ:
        die_with_parent()
        if work.job.project == work.job.root:
            _note_absences(work)
            if _await_whole_lock(work.job.root):
                return 2
            use_private_state(work.job.root, {})  # from the next dvc on, also one that is typed
    else:
        print(f"warning: not recorded by DVC; to record it run: dvc repro {work.job.name}", file=sys.stderr)
    runtime = work.job.block(Runtime)
    STOP.grace_seconds = runtime.grace_seconds
    if submits(work.params, work.job.name):
        return _submit(work, given)
    url = os.environ.get("PREFECT_API_URL")
    try:
        fault = find_server_fault(url, runtime.prefect_probe_seconds) if url else None
        if fault:
            print(f"warning: {fault}; running without it", file=sys.stderr)
        with count_gpu_hours(work.job.spending, _count_gpus(work)):
            if url and fault is None:
                run_as_flow(work, _report_error)
            elif not url and (journals := os.environ.get(JOURNALS)):
                run_with_journal(work, Path(journals))
            else:
                work.run(Progress())
    except SystemExit as stop:
        if stop.code == BUDGET_CODE:
            print(f"error: {work.job.name}: {work.job.spending.explain_reached()}", file=sys.stderr)
            raise
        _say_stopped(work)
        raise
    except Exception as error:
        return _report_error(error)
    return 0


def _submit(work: Work, given: Mapping[str, str]) -> int:
    try:
        return submit_stage(work, given)
    except SystemExit:
        _say_stopped(work)
        raise
    except Exception as error:
        return _report_error(error)


def _say_stopped(work: Work) -> None:
    print(f"{work.job.name}: stopped; run it again with: dvc repro {work.job.name}", file=sys.stderr)


def _await_whole_lock(root: Path) -> bool:
    """Keeps a copy of dvc.lock; says so and returns True if it is cut off, and no dvc is about to write the rest."""
    for _ in range(_LOCK_SECONDS):
        if not is_cut(root):
            keep_whole_lock(root)
            return False
        time.sleep(1)
    print("error: dvc.lock was cut off, since a dvc was killed while it wrote it; `ril run` mends it", file=sys.stderr)
    return True


def _note_absences(work: Work) -> None:
    """Says which of the stage's files experiments would lack: plain dvc tells it without a remedy."""
    with suppress(GitError):  # without a repository there are no experiments
        for line in list_absences(work.job.root, [work.job]):
            print(f"note: {line}", file=sys.stderr)


def _report_error(error: BaseException | None) -> int:
    """Prints `error`, if there is one: a line when the message was written for the user, else with its traceback."""
    if error is None:
        return 0
    place = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, BudgetReached):
        print(f"error: {error}", file=sys.stderr)
        return BUDGET_CODE
    if isinstance(error, RefusedCheckpoint | UnusableData | HubRefusal):
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    ours = Path(place.filename).is_relative_to(Path.cwd() / "stages")
    if isinstance(error, InputsMoved | MissingInput | Failure):
        print(f"error: {error}", file=sys.stderr)
    elif told := explain_write_error(error):
        print(f"error: {told}", file=sys.stderr)
    elif ours and isinstance(error, ValueError | FileNotFoundError):
        print(f"error: {error} ({Path(place.filename).relative_to(Path.cwd())}, line {place.lineno})", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(run_in_job(main) if is_job() and not is_follower() else main())
    finally:
        cancel_alarms()

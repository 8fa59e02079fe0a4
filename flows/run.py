"""Runs one stage, once, in this process. `dvc.yaml` calls it.

    python -m flows.run <stage> [item]      e.g.  python -m flows.run teacher internvl3
    python -m flows.run [<stage>] --help

With a Prefect server at PREFECT_API_URL the stage is a flow run there; without one it shows a progress bar here.
Exit code: 0 the work is done, 1 it failed, 2 it could not start (parameters, inputs), 130 or 143 it was stopped.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from flows.describe import describe_all, describe_stage
from flows.environment import prepare
from flows.server import run_as_flow, server_answers
from flows.work import InputsMoved, UnknownTarget, Work
from stages.job import STAGES, MissingInput, ParamsError, Progress
from stages.job.stop import STOP

_SAME_STOP_SECONDS = 5.0  # a signal to the group comes twice: once sent, once more because dvc died of it
_RAISE_AGAIN_SECONDS = 0.5
_STEP_SECONDS = 15.0  # a step of training gets this long to end well; dvc's stage is killed after 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stage that `arguments` name and returns the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    root = Path.cwd()
    names = [argument for argument in arguments if not argument.startswith("-")]
    if "-h" in arguments or "--help" in arguments:
        print(describe_stage(names[0], root) if names and names[0] in STAGES else describe_all())
        return 0
    if len(names) != len(arguments) or not 1 <= len(names) <= 2:
        print(f"error: expected a stage and at most one item, got {' '.join(arguments) or 'nothing'}", file=sys.stderr)
        print(describe_all(), file=sys.stderr)
        return 2
    _end_well_on_signals()
    prepare()
    try:
        work = Work(names[0], names[1] if len(names) == 2 else None, root)
    except (ParamsError, UnknownTarget, MissingInput) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    return _run(work)


def _run(work: Work) -> int:
    if "DVC_STAGE" in os.environ:
        _die_with_parent()
    else:
        print(f"warning: not recorded by DVC; to record it run: dvc repro {work.job.name}", file=sys.stderr)
    runtime = work.job.params.runtime
    url = os.environ.get("PREFECT_API_URL")
    try:
        if url and server_answers(url, runtime.prefect_probe_seconds):
            run_as_flow(work, _exit_code)
        else:
            if url:
                print(f"warning: no Prefect server answers at {url}; running without it", file=sys.stderr)
            work.run(Progress())
    except SystemExit:
        print(f"{work.job.name}: stopped; run it again with: dvc repro {work.job.name}", file=sys.stderr)
        raise
    except Exception as error:
        return _exit_code(error)
    return 0


def _exit_code(error: BaseException | None) -> int:
    """Prints `error`, if there is one: a line when the message was written for the user, else with its traceback."""
    if error is None:
        return 0
    place = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(place.filename).is_relative_to(Path.cwd() / "stages")
    if isinstance(error, InputsMoved | MissingInput):
        print(f"error: {error}", file=sys.stderr)
    elif ours and isinstance(error, ValueError | FileNotFoundError):
        print(f"error: {error} ({Path(place.filename).relative_to(Path.cwd())}, line {place.lineno})", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def _end_well_on_signals() -> None:
    """Makes SIGTERM and Ctrl-C exceptions, so that engines are shut down and files closed; a later one ends at once.

    In a training loop the exception waits for the end of the step, so that a checkpoint can be written. C code that is being
    imported may drop an exception (seen in one of three kills at that moment), so it is raised again as long as none is on
    its way.
    """
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        repeated = bool(first)
        if repeated and number != signal.SIGALRM and time.monotonic() - first[0] > _SAME_STOP_SECONDS:
            os._exit(128 + number)
        first.append(time.monotonic())
        if not repeated:
            STOP.code = 128 + number
        if STOP.awaited and not repeated:
            print(f"stopping after this step, or in {_STEP_SECONDS:.0f} s; once more ends at once", file=sys.stderr)
            signal.setitimer(signal.ITIMER_REAL, _STEP_SECONDS)
        elif not _ending(sys.exception()) and (number == signal.SIGALRM or not STOP.awaited):
            signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
            raise SystemExit(STOP.code)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)


def _ending(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is the end of this process on its way through `finally` blocks."""
    return error is not None and (isinstance(error, SystemExit) or _ending(error.__context__))


def _die_with_parent() -> None:
    """Asks the kernel for SIGTERM when dvc dies; else a killed dvc leaves an orphan that goes on writing."""
    import ctypes

    pr_set_pdeathsig = 1
    parent = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it died just before
        raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

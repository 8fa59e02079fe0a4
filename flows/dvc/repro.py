"""The only code that starts dvc.

dvc runs in a session of its own and writes to a log file that is shown as it grows. So a cancel reaches every process
of the stage (a signal to dvc alone would leave an orphan that goes on writing), and a reader that dies does not break
the work (with a pipe, the next line printed would).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from flows.dvc.cache import explain_lost_outs, list_lost_outs
from flows.dvc.cut_lock import keep_whole_lock, mend_cut_lock
from flows.dvc.dead_entries import remove_dead_entries
from flows.dvc.experiments import find_experiment_commit, read_locked_stages_at
from flows.dvc.failed import DvcFailed as DvcFailed
from flows.dvc.locks import ExperimentLock, OutputWatcher, hold_experiment_lock
from flows.dvc.order import StageOrder, parse_needs, select_stale, select_targets
from flows.dvc.orphans import find_copy, remove_copy, remove_orphans
from flows.dvc.private_state import use_private_state
from flows.launcher import count_grace_seconds
from flows.lockfile import read_locked_stages
from stages.config.params import load_runtime
from stages.job.spending import BUDGET_CODE

_POLL_SECONDS = 0.2
_KILL_SECONDS = 25.0  # for the kernel to end what got SIGKILL
_UNDER_WAY = "Reproducing experiment"  # what `dvc exp run` says when it has its copy
_ASK_SECONDS = 600.0  # for questions to dvc that run nothing; hashing large outs takes minutes
# What dvc adds after each stage; with stages side by side it would be every fifth line.
_HINTS = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config core.autostage|Use `dvc push`"
)
LIMIT_HOURS = 14 * 24.0  # the paper's longest stage takes 5 days


class Output(Protocol):
    """Where dvc's output goes: a text stream, or anything that takes text."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class Command:
    """One dvc: what it is told, and what stands before each line that it writes where several run side by side."""

    arguments: Sequence[str]
    label: str = ""


class NestedRun(RuntimeError):
    """dvc was asked for from inside a stage that dvc runs."""


@dataclass(frozen=True)
class Targets:
    """What dvc is to bring up to date."""

    names: Sequence[str] = ()  # stages such as `ril` or `teacher@internvl3`; none: all
    single: bool = False  # without the stages before them
    force: bool = False  # even when nothing changed


def run_repro(
    root: Path,
    targets: Targets = Targets(),
    *,
    jobs: int = 1,
    limit_hours: float = LIMIT_HOURS,
    output: Output | None = None,
) -> int:
    """Runs `dvc repro` in `root` for `targets` and returns its exit code.

    With `jobs` above 1 that many stages run at a time, each as a dvc of its own that starts when what it needs is
    done; after a failure no further one is started. 3 when a stage has reached a cap of `budget`, 143 or 130 when this
    process was told to stop (then every process of the stages has ended), 124 when `limit_hours` were over.

    1 also when a result is not in DVC's cache in the end; dvc itself says 0 then.

    Raises Nested inside a stage; Refused when dvc can't say what is out of date.
    """
    told = output or sys.stdout
    _mend_lock(root, told)
    code = _run_repro(root, targets, jobs, limit_hours, told)
    keep_whole_lock(root)
    return code or _check_kept(root, targets, told)


def _run_repro(root: Path, targets: Targets, jobs: int, limit_hours: float, output: Output) -> int:
    limit = limit_hours * 3600
    forced = ["--force"] if targets.force else []
    if jobs == 1 or targets.single:
        return _run(root, ["repro", *_make_flags(targets), *targets.names], limit, output)
    needs = select_targets(parse_needs(_ask(root, ["dag", "--dot"])), targets.names)
    todo = needs if targets.force else select_stale(needs, read_status(root, targets.names))
    if not todo:
        output.write("Data and pipelines are up to date.\n")
    width = max(map(len, todo), default=0)
    commands = {name: Command(["repro", "--single-item", *forced, name], name.ljust(width)) for name in todo}
    code = _run_in_order(root, StageOrder(todo), commands, jobs, limit, output)
    if todo and code == 0:
        output.write("All stages are up to date; to keep this state: git add dvc.lock\n")
    return code


def _check_kept(root: Path, targets: Targets, output: Output) -> int:
    """Says which results of the workspace are not in the cache; 1 when there is one."""
    stages = read_locked_stages(root)
    named = {name for name in stages if targets.single and {name, name.split("@")[0]} & set(targets.names)}
    lost = list_lost_outs(root, {name: stages[name] for name in named or stages}, targets.names)
    if lost:
        remedy = "only the workspace has it; make room and run this again, which puts it there"
        output.write(f"ERROR: {explain_lost_outs(root, lost, remedy)}\n")
    return int(bool(lost))


def _check_experiment(root: Path, name: str, targets: Sequence[str], output: Output) -> int:
    """Takes an experiment whose results are not in the cache out of dvc's list; 1 when it was one.

    To adopt it would remove the results that the workspace has.
    """
    commit = find_experiment_commit(root, name)
    if commit is None:
        output.write(f"ERROR: dvc ended well and recorded no experiment {name}; run it again\n")
        return 1
    lost = list_lost_outs(root, read_locked_stages_at(root, commit), targets)
    if lost:
        remove_experiment(root, name)
        remedy = f"experiment {name} was removed from dvc's list; make room and run it again"
        output.write(f"ERROR: {explain_lost_outs(root, lost, remedy)}\n")
    return int(bool(lost))


def _make_flags(targets: Targets) -> list[str]:
    return [*(["--single-item"] if targets.single else []), *(["--force"] if targets.force else [])]


def run_experiment(
    root: Path,
    name: str,
    overrides: Sequence[str],
    targets: Targets = Targets(),
    *,
    limit_hours: float = LIMIT_HOURS,
    output: Output | None = None,
) -> int:
    """Runs experiment `name` with `overrides` (arguments of -S) in a temporary copy of `root`; otherwise as
    `run_repro`.

    The workspace, its params.yaml and its dvc.lock stay as they are. Raises Nested inside a stage.
    """
    given = [part for override in overrides for part in ("-S", override)]
    arguments = ["exp", "run", "--temp", "--name", name, *given, *_make_flags(targets), *targets.names]
    with hold_experiment_lock(root) as release:
        _mend_lock(root, output or sys.stdout)
        _sweep(root, output or sys.stdout)
        code = _run(root, arguments, limit_hours * 3600, OutputWatcher(output or sys.stdout, _UNDER_WAY, release))
    if code:
        _remove_copy(root, name)
    return code or _check_experiment(root, name, targets.names, output or sys.stdout)


@dataclass(frozen=True)
class Experiment:
    """One experiment that is to be run beside others."""

    name: str
    overrides: Sequence[str]  # arguments of -S
    targets: Sequence[str]
    output: Output


class ExperimentSource(Protocol):
    """Hands out experiments one by one, and is told how each of them ended."""

    @property
    def left(self) -> bool:
        """Whether there is one that was not handed out yet."""
        ...

    def next(self) -> Experiment | None:
        """The experiment to start now; None while what is left has to wait for one that runs."""
        ...

    def finish(self, experiment: Experiment, code: int, log: Path) -> None:
        """Takes the exit code of an experiment and the file with all that dvc said."""
        ...


def run_experiments(root: Path, source: ExperimentSource, jobs: int = 1, limit_hours: float = LIMIT_HOURS) -> int:
    """Runs what `source` hands out, each in a temporary copy of `root`, up to `jobs` at a time; one that fails ends no
    other.

    0 when all have ended, however; 143 or 130 when this process was told to stop, 124 when `limit_hours` were over
    (then every process of theirs has ended). Raises Nested inside a stage.
    """
    _refuse_nesting()
    grace = _read_grace(root)
    remove_dead_entries(root)
    _mend_lock(root, sys.stdout)
    running, code = list[tuple[Experiment, _Run]](), 0
    end = time.monotonic() + limit_hours * 3600
    with (
        _catch_stop_signals() as stopped,
        ExperimentLock(root) as lock,
        _ending(lambda: [run for _, run in running], grace),
    ):
        while (source.left and code == 0) or running:
            if lock.held and all(run.has_written(_UNDER_WAY) for _, run in running[-1:]):
                lock.release()
            if source.left and code == 0 and len(running) < jobs and not lock.held and lock.acquire():
                new = source.next()
                if new is not None:
                    _sweep(root, new.output)
                    given = [part for override in new.overrides for part in ("-S", override)]
                    arguments = ["exp", "run", "--temp", "--name", new.name, *given, *new.targets]
                    running.append((new, _Run(root, Command(arguments), new.output)))
                else:
                    lock.release()
            time.sleep(_POLL_SECONDS)
            if stopped or time.monotonic() >= end:
                code = 128 + stopped[0] if stopped else 124
                _end_groups([run.process for _, run in running if run.process.poll() is None], grace)
            for one, run in [pair for pair in running if pair[1].show()]:
                running.remove((one, run))
                ended = run.process.returncode
                if ended:
                    _remove_copy(root, one.name)
                if code == 0:  # else it was told to end
                    source.finish(one, ended or _check_experiment(root, one.name, one.targets, one.output), run.log)
    return code


def read_status(root: Path, targets: Sequence[str] = (), *, single: bool = False) -> dict[str, list[Any]]:
    """What is out of date for `targets` and, unless `single`, for the stages before them: reasons by stage.

    Raises Refused when dvc fails.
    """
    deep = ["--with-deps"] if targets and not single else []
    answer: dict[str, list[Any]] = json.loads(_ask(root, ["status", "--json", *deep, *targets]))
    return answer


def remove_experiment(root: Path, name: str) -> None:
    """Takes experiment `name` out of dvc's list; outs stay in the cache. Raises Refused when dvc fails."""
    _ask(root, ["exp", "remove", name])


def read_differences(root: Path, name: str) -> str:
    """Metrics and parameters of experiment `name` beside those of HEAD, as Markdown. Raises Refused when dvc fails."""
    return _ask(root, ["exp", "diff", "--md", "HEAD", name])


def list_experiments(root: Path, commits: int) -> list[dict[str, Any]]:
    """The workspace, the last `commits` commits and their experiments, as `dvc exp show --json` tells them.

    Raises Refused when dvc fails.
    """
    answer: list[dict[str, Any]] = json.loads(_ask(root, ["exp", "show", "--json", "--num", str(commits)]))
    return answer


def _ask(root: Path, arguments: Sequence[str]) -> str:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    try:
        answer = subprocess.run(
            command,
            cwd=root,
            env=_make_environment(root),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DvcFailed(f"dvc {arguments[0]} took longer than {_ASK_SECONDS:.0f} s") from error
    if answer.returncode:
        raise DvcFailed(f"dvc {' '.join(arguments)}: {' '.join(answer.stderr.split())}")
    return answer.stdout


def _make_environment(root: Path) -> dict[str, str]:
    """For dvc: `python` in dvc.yaml is this one, and what Prefect told this process about its own run stays here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    use_private_state(root, kept)
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


def _run(root: Path, arguments: Sequence[str], limit: float, output: Output) -> int:
    return _run_in_order(root, StageOrder({"dvc": ()}), {"dvc": Command(arguments)}, 1, limit, output)


def _run_in_order(
    root: Path, order: StageOrder, commands: Mapping[str, Command], jobs: int, limit: float, output: Output
) -> int:
    _refuse_nesting()
    grace = _read_grace(root)
    remove_dead_entries(root)
    running, done, code = dict[str, _Run](), 0, 0
    start = time.monotonic()
    end = start + limit
    with _catch_stop_signals() as stopped, _ending(running.values, grace):
        while (order.left and code == 0) or running:
            while code == 0 and len(running) < jobs and (name := order.next()) is not None:
                running[name] = _Run(root, commands[name], output)
            time.sleep(_POLL_SECONDS)
            late = time.monotonic() >= end
            if stopped or late:
                code = 128 + stopped[0] if stopped else 124
                _end_groups([run.process for run in running.values() if run.process.poll() is None], grace)
            for name in [name for name, run in running.items() if run.show()]:
                log = running[name].log
                ended = running.pop(name).process.returncode
                if ended == 0:
                    order.finish(name)
                    done += 1
                if len(commands) > 1:
                    output.write(f"{done} of {len(commands)} stages done after {time.monotonic() - start:.0f} s\n")
                code = code or (_find_stage_code(log) if ended else 0) or ended
    return code


def _find_stage_code(log: Path) -> int:
    """BUDGET_CODE when a stage ended with it, which dvc says in its log and not by its own exit code; else 0."""
    told = log.read_text(encoding="utf-8", errors="replace")
    return BUDGET_CODE if f"exited with {BUDGET_CODE}\n" in told else 0


@contextmanager
def _ending(list_runs: Callable[[], Iterable["_Run"]], grace: float) -> Iterator[None]:
    """No dvc goes on without this process: where the block fails, what runs is ended first."""
    try:
        yield
    finally:
        _end_groups([run.process for run in list_runs() if run.process.poll() is None], grace)


def _refuse_nesting() -> None:
    if "DVC_STAGE" in os.environ:
        raise NestedRun(f"a stage ({os.environ['DVC_STAGE']}) may not start dvc: it would run inside itself")


class _Run:
    """One dvc in a session of its own, and what it has written so far."""

    def __init__(self, root: Path, command: Command, output: Output) -> None:
        self.log = _make_log_file(root)
        with self.log.open("wb") as written:
            self.process = subprocess.Popen(
                # --wait-for-lock: without it a finished stage is reported as failed when another dvc holds the lock
                # for 3 seconds
                [sys.executable, "-m", "dvc", "--wait-for-lock", *command.arguments],
                cwd=root,
                env=_make_environment(root),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        self._shown = self.log.open("r", encoding="utf-8", errors="replace")
        self._output, self._label, self._part = output, command.label, ""

    def has_written(self, text: str) -> bool:
        """Whether dvc has written `text`, or has ended."""
        return self.process.poll() is not None or text in self.log.read_text(encoding="utf-8", errors="replace")

    def show(self) -> bool:
        """Copies what is new in the log; True, once, when dvc has ended and all of it was copied."""
        ended = self.process.poll() is not None
        if self._label:
            *lines, self._part = (self._part + self._shown.read()).split("\n")
            lines += [self._part] if ended and self._part else []
            self._output.write(
                "".join(f"{self._label} | {line}\n" for line in lines if line and not _HINTS.match(line))
            )
        else:
            self._output.write(self._shown.read())
        self._output.flush()
        if ended:
            self._shown.close()
        return ended


def _mend_lock(root: Path, output: Output) -> None:
    if mended := mend_cut_lock(root):
        output.write(f"warning: {mended}\n")


def _sweep(root: Path, output: Output) -> None:
    """Removes what killed runs of experiments have left; the lock of experiments is held."""
    for line in remove_orphans(root):
        output.write(f"{line}\n")


def _remove_copy(root: Path, name: str) -> None:
    """Removes the temporary copy of an experiment: a dvc that was told to end leaves it, checkpoints and all."""
    if (copy := find_copy(root, name)) is not None:
        remove_copy(root, copy)


def _make_log_file(root: Path) -> Path:
    folder = root / ".ril" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"dvc-{datetime.now(UTC):%Y%m%dT%H%M%S-%f}-{os.getpid()}.log"


def _read_grace(root: Path) -> float:
    """Seconds between SIGTERM and SIGKILL: time for a stage to save, or to end its job."""
    return count_grace_seconds(load_runtime(root / "params.yaml"))


def _end_groups(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ends each dvc and everything it started: SIGTERM to all, and SIGKILL for what is left after `grace` seconds."""
    for process in processes:
        _signal_group(process.pid, signal.SIGTERM)  # each is the leader of its own session
    end = time.monotonic() + grace
    while time.monotonic() < end:
        for process in processes:
            process.poll()  # reaps dvc; a zombie would count as a member of the group
        if not any(_signal_group(process.pid, 0) for process in processes):
            return
        time.sleep(_POLL_SECONDS)
    for process in processes:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait(timeout=_KILL_SECONDS)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _catch_stop_signals() -> Iterator[list[int]]:
    """Yields a list that receives SIGINT and SIGTERM instead of this process."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Runs a stage as a Slurm job: submits it, shows its output as it comes, and ends with its exit code.

The process that DVC has started for the stage is the submitter. A job that Slurm ends (time limit, pre-emption, a node
that fails) is submitted again and goes on from its last checkpoint and its stored answers. When the submitter is told
to stop, the job is ended first. When it is killed, the job ends by itself (`flows/slurm/exchange.py`), and the next
submitter of the same stage ends what is left of it before it submits: no two of them run.
"""

import codecs
import contextlib
import hashlib
import math
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import Timeout

from flows.environment import leave_machine_out
from flows.launcher import CANCEL_SECONDS, JOB_FOLDER, find_launcher
from flows.slurm.commands import (
    INTERRUPTED,
    WAITING,
    ControllerSilent,
    JobState,
    SlurmRefusal,
    ask_job_to_stop,
    cancel_jobs,
    list_jobs,
    look_at_job,
    submit_script,
)
from flows.slurm.exchange import Exchange
from flows.slurm.request import count_job_gpus
from flows.work import Work
from stages.config.launcher import Launcher
from stages.config.runtime import Runtime
from stages.job.failure import Failure
from stages.job.job import Job
from stages.job.lock_files import hold_lock, read_holder
from stages.job.spending import BUDGET_CODE

_WARN_SECONDS = 30  # before the time limit, beside the grace: Slurm looks at its limits every 30 s
_POLL_SECONDS = 0.5  # between looks at the files of a job
_FIRST_ASK_SECONDS, _ASK_SECONDS = 1.0, 10.0  # between questions to the controller: soon after the start, later
_SILENT_MINUTES = 60.0  # a controller that does not answer; jobs go on without it
_LIMIT_HOURS = 14 * 24.0  # as long as a run of dvc may take
_STOPPED = (130, 143)  # exit codes of a stage that was told to stop
_INHERITED = re.compile(r"SLURM_|SRUN_|PMI")  # what a job around this process says of itself

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _Ended:
    """How a job ended: its exit code, and what Slurm says of it; "" where the job said all."""

    code: int
    state: str = ""


def submit_stage(work: Work, environ: Mapping[str, str]) -> int:
    """Runs the stage of `work` as a job with the environment `environ`, and returns its exit code.

    Raises Failure when another process submits it, when Slurm does not take or loses the job, or when it was ended too
    often; SystemExit when this process is told to stop, after the job has ended.
    """
    exchange = Exchange(work.job.root / ".ril" / "slurm" / work.job.name)
    try:
        lock = hold_lock(exchange.lock, f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        raise Failure(
            f"{work.job.name} is being submitted by {read_holder(exchange.lock) or 'another process'}; wait for it, or "
            "end it"
        ) from error
    with lock, work.hold_copy(), exchange.renew_beat():
        return _Submitter(work, exchange, environ).run()


class _Submitter:
    def __init__(self, work: Work, exchange: Exchange, environ: Mapping[str, str]) -> None:
        self._job, self._exchange = work.job, exchange
        self._launcher = find_launcher(work.params.runtime)
        self._grace = work.job.block(Runtime).grace_seconds
        self._say = work.job.progress.say
        self._script = make_script(work.job)
        self._gpus = count_job_gpus(work.params, work.job.name)
        self._options = make_options(work.job, self._launcher, self._gpus, exchange)
        self._environ = make_job_environment(environ, exchange.folder)
        told = [work.digest, self._script, *self._options]
        self._identity = hashlib.sha256("\0".join(told).encode()).hexdigest()[:32]
        self._name = name_job(work.job)
        self._silent_since: float | None = None
        self._shown: _Output | None = None  # of the job that is followed

    def run(self) -> int:
        """Submits until a job has ended by itself; returns its exit code."""
        try:
            return self._run()
        except Failure:
            raise
        except BaseException:  # SystemExit: this process is to stop; whatever it is, no job stays behind
            self._end_jobs()
            raise

    def _run(self) -> int:
        tried, before = 0, measure_progress(self._job)
        number = self._take_over() or self._submit()
        while True:
            ended = self._follow(number)
            if ended.state == "CANCELLED":
                raise Failure(f"{self._job.name}: job {number} was cancelled; run it again: dvc repro {self._job.name}")
            if ended.state not in INTERRUPTED and ended.code not in _STOPPED:
                return self._explain(number, ended)
            now = measure_progress(self._job)
            tried, before = (1, now) if now > before else (tried + 1, before)
            why = "time limit" if ended.state == "TIMEOUT" else ended.state.lower().replace("_", " ")
            why = "it was told to stop" if why in ("", "failed", "completed") else why
            if tried > self._launcher.attempts:
                raise Failure(
                    f"{self._job.name}: job {number} was ended ({why}), and was submitted again "
                    f"{self._launcher.attempts} times without progress; raise runtime.launcher.hours or attempts, or "
                    "lower runtime.checkpoint_minutes"
                )
            self._say(
                f"{self._job.name}: job {number} was ended ({why}); submits it again, attempt {tried} of "
                f"{self._launcher.attempts} without progress"
            )
            number = self._submit()

    def _explain(self, number: int, ended: _Ended) -> int:
        """Returns the exit code of a job that ended by itself, and says where to look if that is unusual.

        Raises Failure for one that Slurm has ended for good.
        """
        if ended.state in ("", "FAILED", "COMPLETED"):
            if ended.code not in (0, 1, 2, BUDGET_CODE):
                output = self._exchange.locate_output(number)
                self._say(f"{self._job.name}: job {number} ended with exit code {ended.code}; its output: {output}")
            return ended.code
        why = ended.state.lower().replace("_", " ")
        remedy = f"see scontrol show job {number}"
        if ended.state == "OUT_OF_MEMORY":
            remedy = "ask for more with --mem or --mem-per-gpu in runtime.launcher.arguments"
        raise Failure(f"{self._job.name}: Slurm ended job {number}: {why}; {remedy}")

    # --- becoming the only submitter ----------------------------------------------------------------------------------

    def _take_over(self) -> int:
        """Returns the job of an earlier submitter that waits and asks for the same; 0 without, after others ended."""
        found = self._ask(lambda: list_jobs(self._name))
        for one in found:
            if one.state == "PENDING" and one.comment == self._identity and len(found) == 1:
                self._say(f"{self._job.name}: job {one.number} of an earlier run still waits; waiting for it")
                return one.number
        numbers = ", ".join(str(one.number) for one in found)
        if any(one.state != "COMPLETING" for one in found):
            self._say(f"{self._job.name}: ends job {numbers} of an earlier run, whose submitter has died")
        if found and not self._end_jobs():
            raise Failure(f"{self._job.name}: job {numbers} of an earlier run does not end; scancel it")
        return 0

    # --- one job ------------------------------------------------------------------------------------------------------

    def _submit(self) -> int:
        options = [f"--comment={self._identity}", *self._options]
        while True:
            try:
                number = submit_script(self._script, options, self._environ)
                break
            except SlurmRefusal as error:
                raise Failure(
                    f"{self._job.name}: Slurm refuses the job: {error}; change runtime.launcher (docs/clusters.md)"
                ) from error
            except ControllerSilent as error:
                self._bear_silence(error)
                time.sleep(_ASK_SECONDS)
                if found := self._ask(lambda: list_jobs(self._name)):  # it was taken nevertheless
                    number = found[0].number
                    break
        self._say(f"{self._job.name}: submitted as job {number}, GPUs: {self._gpus}")
        return number

    def _follow(self, number: int) -> _Ended:
        """Shows the output of a job until it has ended, and returns how."""
        began = asked = time.monotonic()
        said, shown = "", _Output(self._exchange.locate_output(number))
        self._shown = shown
        while time.monotonic() - began < _LIMIT_HOURS * 3600:
            time.sleep(_POLL_SECONDS)
            shown.copy()
            code = self._exchange.read_result(number)
            if code == 0:
                shown.copy()
                return _Ended(0)
            now = time.monotonic()
            pause = min(_ASK_SECONDS, max(_FIRST_ASK_SECONDS, (now - began) / 10))
            if now - asked < (pause if code is None else _FIRST_ASK_SECONDS):
                continue
            asked = now
            state = self._ask(lambda: look_at_job(number))
            if state is None or not state.open:
                shown.copy()
                return self._judge(number, state)
            line = _describe_state(state)
            if line != said:
                said = line
                self._say(f"{self._job.name}: job {number} {line}")
        raise Failure(f"{self._job.name}: job {number} has not ended in {_LIMIT_HOURS:g} hours")

    def _judge(self, number: int, state: JobState | None) -> _Ended:
        """Returns how a job ended. The exit code that it has left counts; one that Slurm was ending may leave any."""
        code = self._exchange.read_result(number)
        if state is None:  # forgotten: it said all, or it was lost
            return _Ended(1, "NODE_FAIL") if code is None else _Ended(code)
        if code is None:
            code = 128 + state.signal if state.signal else state.code
            code = 1 if code == 0 and state.state != "COMPLETED" else code
        return _Ended(code, state.state)

    def _end_jobs(self) -> bool:
        """Ends all jobs of this stage: asks those that run to stop, and cancels them after the grace.

        Returns when they have ended; False, and says so, if they have not.
        """
        began, asked = time.monotonic(), set[int]()
        while time.monotonic() - began < self._grace + CANCEL_SECONDS:
            try:
                found = list_jobs(self._name)
                if self._shown is not None:
                    self._shown.copy()
                if not found:
                    return True
                late = time.monotonic() - began > self._grace + CANCEL_SECONDS / 6
                waiting = [one.number for one in found if late or one.state in WAITING]
                if waiting:
                    cancel_jobs(waiting)
                for number in (one.number for one in found if one.state == "RUNNING"):
                    if number not in asked and not late:
                        ask_job_to_stop(number)
                        asked.add(number)
            except (ControllerSilent, SlurmRefusal) as error:  # a job that has just ended can't be signalled
                self._say(f"{self._job.name}: {error}")
            time.sleep(_POLL_SECONDS)
        self._say(f"{self._job.name}: its job has not ended yet; see squeue --name={self._name}")
        return False

    # --- the controller -----------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        while True:
            try:
                answer = question()
            except ControllerSilent as error:
                self._bear_silence(error)
                time.sleep(_ASK_SECONDS)
            except SlurmRefusal as error:
                raise Failure(f"{self._job.name}: {error}") from error
            else:
                self._silent_since = None
                return answer

    def _bear_silence(self, error: ControllerSilent) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            self._say(f"{self._job.name}: Slurm's controller does not answer ({error}); a job goes on without it")
        if now - self._silent_since > _SILENT_MINUTES * 60:
            raise Failure(f"{self._job.name}: Slurm's controller is silent for {_SILENT_MINUTES:.0f} minutes: {error}")


class _Output:
    """The output of a job, copied to that of this process."""

    def __init__(self, path: Path) -> None:
        self._path, self._done = path, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> None:
        """Copies what is new."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._done)
            for part in iter(lambda: file.read(1 << 16), b""):
                self._done += len(part)
                sys.stdout.write(self._decoder.decode(part))
            sys.stdout.flush()


def _describe_state(state: JobState) -> str:
    if state.state == "PENDING":
        return f"waits ({state.reason or 'no reason given'})"
    return f"is {state.state.lower()}{f' on {state.nodes}' if state.nodes else ''}"


def name_job(job: Job) -> str:
    """Returns the name of the jobs of a run in this folder: who looks for them finds no other project's."""
    return f"ril-{job.name}-{hashlib.sha256(str(job.root.resolve()).encode()).hexdigest()[:12]}"


def make_script(job: Job) -> str:
    """Returns the batch script: this stage, by this Python. `exec`: Slurm's signals reach the stage itself."""
    words = [sys.executable, "-m", "flows.run", job.stage, *([job.item] if job.item else [])]
    return f"#!/bin/sh\nexec {shlex.join(words)}\n"


def make_options(job: Job, launcher: Launcher, gpus: int, exchange: Exchange) -> list[str]:
    """Returns the options of sbatch."""
    grace = math.ceil(job.block(Runtime).grace_seconds) + _WARN_SECONDS
    output = str(exchange.locate_output("%j").parent).replace("%", "%%")
    options = [
        f"--job-name={name_job(job)}",
        f"--chdir={job.root}",
        f"--output={output}/{exchange.locate_output('%j').name}",
        "--open-mode=append",
        "--export=ALL",
        "--no-requeue",  # the submitter does it, which sees whether there was progress
        "--nodes=1",
        "--ntasks=1",
        f"--signal=B:TERM@{grace}",
    ]
    if gpus:
        options.append(f"--gres=gpu:{f'{launcher.gpu_type}:' if launcher.gpu_type else ''}{gpus}")
    if launcher.partition:
        options.append(f"--partition={launcher.partition}")
    if launcher.account:
        options.append(f"--account={launcher.account}")
    if launcher.hours:
        options.append(f"--time={max(1, math.ceil(60 * launcher.hours))}")
    return [*options, *launcher.arguments]


def make_job_environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Returns the environment of a job: that of the stage here, without what belongs to this machine or to a job around
    it.
    """
    kept = {
        name: value
        for name, value in leave_machine_out(environ).items()
        if name == "SLURM_CONF" or not _INHERITED.match(name)
    }
    return {**kept, JOB_FOLDER: str(folder), "PYTHONUNBUFFERED": "1"}


def measure_progress(job: Job) -> tuple[int, int]:
    """Returns what grows with the work of a stage: the step of its last checkpoint, the bytes of all stored answers."""
    done = (job.store / "runs" / job.name).glob("*/step_*/DONE")
    steps = [int(path.parent.name.removeprefix("step_")) for path in done]
    return max(steps, default=0), sum(_iter_sizes(job.store / "responses"))


def _iter_sizes(folder: Path) -> Iterator[int]:
    for path in folder.glob("*/*.parquet"):
        with contextlib.suppress(OSError):  # compacted meanwhile
            yield path.stat().st_size

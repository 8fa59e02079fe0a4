"""Slurm's commands: submit a job, list and look at jobs, signal and cancel them. Nothing else here knows their output.

They run in sessions of their own: Ctrl-C in a terminal goes to the process that waits for a job, which then uses them.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ANSWER_SECONDS = 90.0  # Slurm's own limit (MessageTimeout) is 10 s an attempt
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel")
# States in which a job has not ended, as `scontrol` writes them.
OPEN = frozenset(
    ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "COMPLETING")
)
WAITING = frozenset(("PENDING", "CONFIGURING"))
# What Slurm ends without a fault of the job.
INTERRUPTED = frozenset(("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"))
# The controller is restarted, or busy; it may have taken the job nevertheless.
_TRANSIENT = re.compile(r"contact slurm controller|timed out|Connection refused|Zero Bytes|not responding", re.I)
_UNKNOWN = "Invalid job id"
_CHANGING = ("SQUEUE_", "SCANCEL_")  # variables of users that change which jobs are listed and cancelled


class SlurmRefusal(RuntimeError):
    """Slurm does not take what it was given; the message is Slurm's."""


class ControllerSilent(RuntimeError):
    """No answer of Slurm's controller, which may come later; the message is Slurm's."""


@dataclass(frozen=True)
class JobState:
    """What the controller says of a job."""

    number: int
    state: str
    reason: str = ""  # why it waits
    code: int = 0  # its exit code
    signal: int = 0  # the signal that ended it
    nodes: str = ""

    @property
    def open(self) -> bool:
        """Whether it waits, runs, or is being ended."""
        return self.state in OPEN


@dataclass(frozen=True)
class ListedJob:
    """A job that has not ended."""

    number: int
    state: str
    comment: str


def submit_script(script: str, options: Sequence[str], environ: Mapping[str, str]) -> int:
    """Submits `script` with the environment `environ` and returns the number of the job.

    Raises SlurmRefusal, or ControllerSilent, after which the job may exist nevertheless.
    """
    told = _ask_slurm(["sbatch", "--parsable", *options], script, environ)
    return int(told.strip().partition(";")[0])


def list_jobs(name: str) -> list[ListedJob]:
    """Returns this user's jobs of that name which have not ended. Raises SlurmRefusal or ControllerSilent."""
    words = ["squeue", "--noheader", "--me", f"--name={name}", "--format=%i|%T|%k"]
    rows = [line.strip().split("|", 2) for line in _ask_slurm(words).splitlines() if line.count("|") >= 2]
    return [ListedJob(int(number), state, comment) for number, state, comment in rows if number.isdigit()]


def look_at_job(number: int) -> JobState | None:
    """Returns the state of a job; None when the controller no longer knows it, minutes after its end.

    Raises SlurmRefusal or ControllerSilent.
    """
    try:
        told = _ask_slurm(["scontrol", "show", "job", "--oneliner", str(number)])
    except SlurmRefusal as error:
        if _UNKNOWN in str(error):
            return None
        raise
    return parse_job(told)


def parse_job(text: str) -> JobState | None:
    """Returns what a line of `scontrol show job --oneliner` says; None when it describes no job."""
    found = dict(re.findall(r"(?:^|\s)(JobId|JobState|Reason|ExitCode|NodeList)=(\S*)", text))
    if "JobId" not in found or "JobState" not in found:
        return None
    code, _, signal = found.get("ExitCode", "0:0").partition(":")
    reason, nodes = (found.get(key, "").replace("(null)", "") for key in ("Reason", "NodeList"))
    return JobState(
        number=int(found["JobId"]),
        state=found["JobState"],
        reason="" if reason == "None" else reason,
        code=int(code or 0),
        signal=int(signal or 0),
        nodes=nodes,
    )


def cancel_jobs(numbers: Sequence[int]) -> None:
    """Takes jobs out of the queue, and ends those that run: SIGTERM, and SIGKILL after Slurm's KillWait.

    Raises SlurmRefusal or ControllerSilent.
    """
    _ask_slurm(["scancel", "--quiet", *map(str, numbers)])


def ask_job_to_stop(number: int) -> None:
    """Sends SIGTERM to the stage's process in a job that runs, and to none of those below it.

    Raises SlurmRefusal or ControllerSilent.
    """
    _ask_slurm(["scancel", "--quiet", "--signal=TERM", "--batch", str(number)])


def ping_controller() -> str:
    """Returns what `scontrol ping` says. Raises SlurmRefusal or ControllerSilent."""
    return " ".join(_ask_slurm(["scontrol", "ping"]).split())


def _ask_slurm(words: Sequence[str], given: str = "", environ: Mapping[str, str] = os.environ) -> str:
    try:
        answer = subprocess.run(
            words,
            input=given,
            env={name: value for name, value in environ.items() if not name.startswith(_CHANGING)},
            cwd=Path("/"),  # sbatch notes the folder, which is given by --chdir
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise SlurmRefusal(f"{words[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise ControllerSilent(f"{words[0]}: no answer in {_ANSWER_SECONDS:.0f} s") from error
    said = " ".join(answer.stderr.split())[:500]
    if answer.returncode == 0:
        return answer.stdout
    raise (ControllerSilent if _TRANSIENT.search(said) else SlurmRefusal)(said or f"{words[0]} failed")

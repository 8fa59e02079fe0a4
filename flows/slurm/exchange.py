"""What a job and the process that submitted it tell each other, by files in a folder that both see.

The submitter renews its sign of life, and the job ends well when there is none: so no job outlives its submitter by
more than two minutes, however that one died. The job leaves its exit code, since Slurm forgets it after some minutes,
and some clusters sooner.
"""

import contextlib
import itertools
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.launcher import JOB_FOLDER
from stages.job.files import write_text
from stages.job.silence import Silence, repeat_work

BEAT_SECONDS = 5.0
LOST_SECONDS = 120.0  # a submitter without a new sign of life counts as dead; network file systems show one after 60 s


class Exchange:
    """The folder of one run of a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "lock"
        self._beat = folder / "beat"

    def locate_output(self, number: int | str) -> Path:
        """Returns the file with all that job `number` writes."""
        return self.folder / f"output-{number}.log"

    def _locate_result(self, number: int | str) -> Path:
        return self.folder / f"result-{number}"

    def read_result(self, number: int) -> int | None:
        """Returns the exit code that job `number` has left, None if it left none yet."""
        try:
            return int(self._locate_result(number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_result(self, number: str, code: int) -> None:
        """Leaves the exit code of job `number`."""
        write_text(self._locate_result(number), f"{code}\n")

    @contextlib.contextmanager
    def renew_beat(self) -> Iterator[None]:
        """For this block a thread renews the submitter's sign of life."""
        token, counts = secrets.token_hex(8), itertools.count()

        def renew() -> bool:
            with contextlib.suppress(OSError):  # a full disk: the job says so when it writes
                write_text(self._beat, f"{token} {next(counts)}")
            return True

        renew()  # a job never finds none
        with repeat_work(renew, BEAT_SECONDS, "sign of life of a submitter"):
            yield

    def read_beat(self) -> str:
        """Returns the submitter's sign of life."""
        try:
            return self._beat.read_text(encoding="utf-8")
        except OSError:
            return ""


def run_in_job(stage: Callable[[], int]) -> int:
    """Does `stage` in the job that was submitted for it; returns its exit code, which it leaves for the submitter too.

    Sends SIGTERM to this process when the submitter gives no sign of life.
    """
    exchange = Exchange(Path(os.environ[JOB_FOLDER]))
    number = os.environ["SLURM_JOB_ID"]
    silence = Silence()

    def look() -> bool:
        seconds = silence.measure(exchange.read_beat())
        if seconds < LOST_SECONDS:
            return True
        print(
            f"error: whoever submitted job {number} gives no sign of life for {seconds:.0f} s (a killed dvc, or a file "
            "system that does not show its files here); the job ends, and the next run goes on where it was",
            file=sys.stderr,
            flush=True,
        )
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    code = 1
    try:
        with repeat_work(look, BEAT_SECONDS, "watch over the submitter"):
            code = stage()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk: the submitter asks Slurm
            sys.stdout.flush()
            sys.stderr.flush()
            exchange.write_result(number, code)
    return code

"""The journal of a stage that `ril run` has started: what `flows/ui/run_recorder.py` shows in the Prefect UI.

A stage imports no Prefect for it, asks no server and waits for none: it appends lines of JSON to a file, and one
process of the run reads all of them. As a client of the server each stage would take 1.6 s of CPU, 20 stages 32 s.
A journal that nobody has read stays; the next run or `ril serve` reads it.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flows.artifact_cells import simplify_rows, transpose_steps
from stages.job.lock_files import hold_lock, read_holder
from stages.job.progress import Progress

if TYPE_CHECKING:
    from flows.work import Work  # as in flows/flow_run.py

JOURNALS = "RIL_JOURNALS"  # in the environment of stages: the folder of the run's journals
TAGS = "RIL_RUN_TAGS"  # the same: the tags of the run, as JSON
JOURNAL, LOCK = ".jsonl", ".lock"  # ends of the names of a journal and of the lock that its writer holds
RUN = f"run{JOURNAL}"  # the journal of the `ril run` itself

_BAR_SECONDS = 20.0  # between two values of one bar; each is a request, some 30 ms of CPU
_LATEST_SECONDS = 30.0
_Item = TypeVar("_Item")


class Journal:
    """A file that this process appends events to; the first failure to write ends it with a warning."""

    def __init__(self, path: Path) -> None:
        """Makes the file. Raises OSError."""
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._turn = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """Appends one line."""
        line = json.dumps({"event": event, "time": time.time(), **values}, default=str).encode() + b"\n"
        with self._turn:
            try:
                while self._file is not None and line:
                    line = line[os.write(self._file, line) :]
            except OSError as error:
                print(f"warning: the Prefect UI will not show all of this stage: {error}", file=sys.stderr)
                self.close()

    def close(self) -> None:
        """Ends it; later events are dropped."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


@contextmanager
def open_journal(path: Path, **about: Any) -> Iterator[Journal]:
    """The journal at `path` (ends with JOURNAL), whose first event `start` holds `about`.

    This process holds a lock beside it for the block, so that a reader knows whether the writer lives. Raises OSError.
    """
    with hold_lock(path.with_suffix(LOCK), str(os.getpid())):
        journal = Journal(path)
        try:
            journal.write("start", **about)
            yield journal
        finally:
            journal.close()


class JournalProgress(Progress):
    """Tells the console and a journal. A loop that runs in no other one is a part of the run: a task in the UI."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: list[str] = []
        self._told: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A line, here and in the flow run's log."""
        super().say(text)
        self._journal.write("line", text=text)

    def track(
        self, items: Iterable[_Item], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[_Item]:
        """As `Progress.track`; begins and ends the part."""
        is_part = not self._open
        self._open.append(description)
        if is_part:
            self._journal.write("part", title=description)
        ok = False
        try:
            yield from super().track(items, description, total, done)
            ok = True
        finally:
            self._open.remove(description)
            if is_part:
                self._journal.write("part-end", title=description, ok=ok)

    def on_advance(self, description: str, count: int, total: int | None) -> None:
        """Moves the bar, at most every few seconds and at the end."""
        if total and (count >= total or self._is_due(description, _BAR_SECONDS)):
            self._journal.write("bar", title=description, percent=100.0 * min(count / total, 1.0))

    def show_table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table, here and as an artifact."""
        super().show_table(title, rows)
        if rows:
            self._journal.write("table", title=title, rows=simplify_rows(rows))

    def show_latest(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The newest rows, as one table that changes in place."""
        if rows and self._is_due(title, _LATEST_SECONDS):
            self._journal.write("latest", title=title, rows=transpose_steps(rows))

    def _is_due(self, title: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._told.get(title, float("-inf")) < seconds:
            return False
        self._told[title] = now
        return True


def list_stage_journals(folder: Path) -> list[Path]:
    """The journals of stages in the folder of a run, the oldest first."""
    return sorted(path for path in folder.glob(f"*{JOURNAL}") if path.name != RUN)


def has_ended(journal: Path) -> bool:
    """Whether no process writes the journal any more."""
    return read_holder(journal.with_suffix(LOCK)) is None


def run_with_journal(work: "Work", folder: Path) -> None:
    """Does `work` with a journal in `folder`; without one where it can't be written. Raises what the work raises."""
    with ExitStack() as stack:
        try:
            journal = stack.enter_context(_open_stage_journal(work, folder))
        except OSError as error:
            print(f"warning: the Prefect UI will not show this stage: {error}", file=sys.stderr)
            work.run(Progress())
            return
        try:
            work.run(JournalProgress(journal))
        except SystemExit as stop:
            journal.write("end", state="stopped", text=f"stopped, exit code {stop.code}")
            raise
        except BaseException as error:
            journal.write("end", state="failed", text=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
            raise
        journal.write("end", state="completed", text="")


def _open_stage_journal(work: "Work", folder: Path) -> AbstractContextManager[Journal]:
    job = work.job
    tags = [job.stage, *json.loads(os.environ.get(TAGS, "[]")), *([job.experiment] if job.experiment else [])]
    path = folder / f"{time.time_ns()}-{os.getpid()}{JOURNAL}"  # items may have any name
    return open_journal(path, stage=job.stage, item=job.item, name=job.name, tags=tags)

"""Running the runs of a study: what is finished stays, what is shared is made once, a failure is named and stops nobody
else.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from flows.dvc import repro as dvc
from flows.dvc.outcome import Watched
from flows.dvc.recorded import differing, finished, snapshot
from stages.config.yaml import ParamsError
from stages.job.files import read_json
from stages.page.render import duration
from studies.records import Record, departures, gathered, read_records, write_record
from studies.runs import Run

_DONE = re.compile(r"(?P<stage>\w+(?:@\w+)?): done in (?P<seconds>[\d.]+) s")
_PROGRESS = re.compile(r".+: \d+ of \d+ \(.+ left\)$")  # stages/job/progress.py
_BESIDE = ("params.yaml", "dvc.yaml")  # what a run is started from beside its code
_PROGRESS_SECONDS = 60.0  # between two lines of progress of one experiment
_OWN_SECONDS = 10.0  # of dvc itself in one experiment: copy, checkout, commit (measured: 6.6 s for one stage of 1.2 s)


class Estimates:
    """Seconds of stages as far as they were measured on this machine: by earlier runs, else by the workspace's last
    run.
    """

    def __init__(self, root: Path, records: Iterable[Record]) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        for record in records:
            self.learn(record.seconds)
        measured = set(self._seconds)
        for path in (root / "reports").rglob("timing.json"):
            stage = "@".join(path.parent.relative_to(root / "reports").parts)
            if stage not in measured:
                self._seconds[stage].append(float(read_json(path).get("seconds", 0.0)))

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Takes what the stages of one run took."""
        for stage, value in seconds.items():
            self._seconds[stage].append(value)

    def of(self, stage: str) -> float | None:
        """Mean seconds of `stage`; None when it never ran here."""
        found = self._seconds.get(stage)
        return sum(found) / len(found) if found else None

    def of_all(self, runs: Iterable[Run], made: Collection[str], jobs: int) -> float | None:
        """Wall seconds for `runs`, each stage that they share counted once; None when one of the stages never ran
        here.
        """
        seen, total = set(made), 0.0
        for run in runs:
            total += _OWN_SECONDS
            for stage, key in run.stages.items():
                if key not in seen:
                    seen.add(key)
                    one = self.of(stage)
                    if one is None:
                        return None
                    total += one
        return total / jobs


class _Heard(Watched):
    """What one experiment says: the seconds of its stages, its errors, and how far it is, which is told."""

    def __init__(self, todo: Sequence[str], tell: Callable[[str], None]) -> None:
        """`todo` are the stages it has to make; `tell` gets a line for each of them and, once a minute, one of
        progress.
        """
        super().__init__(self._hear)
        self.seconds: dict[str, float] = {}
        self.complaints: list[str] = []
        self.start = self._told = time.monotonic()
        self._todo, self._tell = todo, tell

    def _hear(self, line: str) -> None:
        if found := _DONE.match(line):
            self.seconds[found["stage"]] = float(found["seconds"])
            if left := sum(stage not in self.stages for stage in self._todo):
                self._tell(f"has {found['stage']} after {duration(float(found['seconds']))}, {left} stages to go")
        elif _PROGRESS.match(line) and time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._tell(f"at {line}")
        if line.lower().startswith("error: "):
            self.complaints.append(line[len("error: ") :])


class Campaign:
    """The source of experiments for `flows.dvc.experiments`.

    A stage that two runs share has the same hash in both. A run waits while another one makes a stage that it needs as
    well; afterwards DVC's run cache has it. So models, teachers' answers and the like are made once, without anybody
    listing them.
    """

    def __init__(
        self, root: Path, runs: Sequence[Run], folder: Path, say: Callable[[str], None], jobs: int = 1
    ) -> None:
        """`folder` is where the study's records are; a run whose record has its key is finished."""
        self._root, self._folder, self._say, self._jobs = root, folder, say, jobs
        self._records = {record.name: record for record in read_records(folder)}
        self._estimates = Estimates(root, self._records.values())
        self.runs = list(runs)
        self.waiting = [run for run in runs if self.record(run) is None]
        self._made = {key for run in runs if run not in self.waiting for key in run.stages.values()}
        self._running: dict[str, tuple[Run, _Heard]] = {}
        self.failed: dict[str, str] = {}  # what went wrong, by name of the run
        self.moved: list[
            str
        ] = []  # files that are no longer as they were when the runs were planned; then none is started any more
        self._planned = self._now() if self.waiting else ""

    def record(self, run: Run) -> Record | None:
        """The record of a finished run; one that was made with other parameters or other code is none."""
        found = self._records.get(run.file)
        return found if found is not None and found.key == run.key else None

    def seconds_left(self) -> float | None:
        """Estimate of the wall seconds until all has ended; None when a stage that is still to come was never timed
        here.
        """
        running = [run for run, _ in self._running.values()]
        spent = sum(time.monotonic() - heard.start for _, heard in self._running.values())
        total = self._estimates.of_all([*running, *self.waiting], self._made, self._jobs)
        return None if total is None else max(total - spent / self._jobs, 0.0)

    def todo(self, run: Run) -> list[str]:
        """The stages of `run` that were made neither by a finished run of the study nor are restored for that
        reason.
        """
        return [stage for stage, key in run.stages.items() if key not in self._made]

    # --- what flows.dvc.experiments asks ------------------------------------------------------------------------------

    @property
    def left(self) -> bool:
        """Whether a run can still be handed out."""
        return bool(self.waiting) and not self.moved

    def next(self) -> dvc.Experiment | None:
        """The first run that needs nothing which another one is making now."""
        busy = {key for run, _ in self._running.values() for key in run.stages.values()} - self._made
        for run in self.waiting:
            if not busy & set(run.stages.values()):
                self.moved = differing(self._root, self._planned, self._now(), *_BESIDE, *run.made_from)
                if self.moved:
                    return None
                self.waiting.remove(run)
                return self._handed_out(run)
        return None

    def ended(self, experiment: dvc.Experiment, code: int, log: Path) -> None:
        """Keeps the record of a run that ended well, and says why another one did not."""
        run, heard = self._running.pop(experiment.name)
        took = duration(time.monotonic() - heard.start)
        reason = "; ".join(dict.fromkeys(heard.complaints)) or f"dvc ended with {code}"
        if code == 0:
            reason = self._kept(run, heard.seconds)
        if reason:
            self.failed[run.name] = f"{reason} (all it said: {log})"
            self._tell(run, f"FAILED after {took}: {self.failed[run.name]}")
        else:
            self._tell(run, f"done in {took}: {_result(self._records[run.file])}; {self._outlook()}")

    def _handed_out(self, run: Run) -> dvc.Experiment:
        todo = self.todo(run)
        heard = _Heard(todo, partial(self._tell, run))
        self._running[run.name] = (run, heard)
        self._tell(run, f"starts: {', '.join(todo)}")
        return dvc.Experiment(run.name, run.overrides, run.targets, heard)

    def adopt(self) -> None:
        """Keeps the records of experiments that ended well while nobody was there to gather them."""
        for run in list(self.waiting):
            if finished(self._root, run.name) is not None and not self._kept(run, {}):
                self.waiting.remove(run)
                self._tell(run, f"was run before: {_result(self._records[run.file])}")

    def _kept(self, run: Run, seconds: Mapping[str, float]) -> str:
        """Gathers and writes the record; what is wrong with it, or nothing."""
        done = finished(self._root, run.name)
        if done is None:
            return "dvc ended well, but recorded no experiment of this name"
        if moved := departures(run, done, self._planned):
            dvc.remove_experiment(self._root, run.name)  # its name holds the key of what was planned
            return f"{', '.join(moved)} changed while the run was started, so it is another run than the planned one"
        try:
            record = gathered(run, done, seconds)
        except (FileNotFoundError, KeyError, ParamsError) as error:
            return f"its results can't be read: {error}"
        write_record(self._folder, record)
        self._records[run.file] = record
        self._made |= set(run.stages.values())
        self._estimates.learn(seconds)
        return ""

    def _now(self) -> str:
        return snapshot(self._root, *_BESIDE, "stages")

    def _outlook(self) -> str:
        count = len(self.waiting) + len(self._running)
        seconds = self.seconds_left()
        return f"{count} left" + (f", about {duration(seconds)}" if count and seconds else "")

    def _tell(self, run: Run, text: str) -> None:
        ended = len(self.runs) - len(self.waiting) - len(self._running)
        self._say(f"[{ended}/{len(self.runs)}] {run.label} {text}")


def _result(record: Record) -> str:
    if record.scores:
        return f"{100 * record.scores['accuracy']:.1f} % of {record.scores['questions']} test questions right"
    return f"validation {100 * record.validation['start']:.1f} % to {100 * record.validation['end']:.1f} %"


def chosen(records: Iterable[Record], seeds: int) -> dict[str, dict[str, float]]:
    """For each arm the swept value with the best mean validation score at the end; of equal ones the smaller.

    A value that was not tried on all `seeds` (one failed) is no candidate; an arm without candidates is left out.
    """
    found: dict[str, dict[tuple[str, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for key, value in record.swept.items():
            found[record.arm][key, value].append(record.validation["end"])
    best = {}
    for arm, by_value in found.items():
        whole = {at: sum(ends) / len(ends) for at, ends in by_value.items() if len(ends) == seeds}
        if whole:
            key, value = max(whole, key=lambda at: (whole[at], -at[1]))
            best[arm] = {key: value}
    return best

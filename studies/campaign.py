"""Runs the experiments of a study: finished runs are kept, shared stages run once, a failed run does not stop the
others.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from flows.dvc import repro as dvc
from flows.dvc.outcome import StageLog
from flows.dvc.recorded import find_recorded, list_differing_files, take_snapshot
from stages.config.yaml import ParamsError
from stages.job.files import read_json
from stages.page.render import format_duration
from studies.records import StudyRecord, find_departures, make_record, read_records, write_record
from studies.runs import Run

_DONE = re.compile(r"(?P<stage>\w+(?:@\w+)?): done in (?P<seconds>[\d.]+) s(?: \((?P<cores>[\d.]+) core-seconds\))?")
_PROGRESS = re.compile(r".+: \d+ of \d+ \(.+ left\)$")  # stages/job/progress.py
_BESIDE = ("params.yaml", "dvc.yaml")  # further files that decide a run
_PROGRESS_SECONDS = 60.0  # between two lines of progress of one experiment
_OWN_SECONDS = 10.0  # overhead of dvc per experiment: copy, checkout, commit (measured: 6.6 s, one stage of 1.2 s)


class Estimates:
    """Seconds of stages measured on this machine: in earlier runs, else in the last run of the workspace."""

    def __init__(self, root: Path, records: Iterable[StudyRecord]) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        for record in records:
            self.learn(record.seconds)
        measured = set(self._seconds)
        for path in (root / "reports").rglob("timing.json"):
            stage = "@".join(path.parent.relative_to(root / "reports").parts)
            if stage not in measured:
                self._seconds[stage].append(float(read_json(path).get("seconds", 0.0)))

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Adds the seconds of the stages of one run."""
        for stage, value in seconds.items():
            self._seconds[stage].append(value)

    def estimate(self, stage: str) -> float | None:
        """Mean seconds of `stage`; None if it has not run here."""
        found = self._seconds.get(stage)
        return sum(found) / len(found) if found else None

    def estimate_all(self, runs: Iterable[Run], made: Collection[str], jobs: int) -> float | None:
        """Wall seconds for `runs`, with shared stages counted once; None if one of the stages has not run here."""
        seen, total = set(made), 0.0
        for run in runs:
            total += _OWN_SECONDS
            for stage, key in run.stages.items():
                if key not in seen:
                    seen.add(key)
                    one = self.estimate(stage)
                    if one is None:
                        return None
                    total += one
        return total / jobs


class _RunLog(StageLog):
    """Reads the output of one experiment: seconds of its stages, errors, progress."""

    def __init__(self, todo: Sequence[str], tell: Callable[[str], None]) -> None:
        """`todo` are the stages to run; `tell` gets a line for each finished stage and a progress line each minute."""
        super().__init__(self._read_line)
        self.seconds: dict[str, float] = {}
        self.core_seconds: dict[str, float] = {}
        self.complaints: list[str] = []
        self.start = self._told = time.monotonic()
        self._todo, self._tell = todo, tell

    @property
    def passed(self) -> list[str]:
        """The stages before the one that dvc is at: their results are in its cache, and are known to its run cache."""
        return list(self.stages)[:-1]

    def _read_line(self, line: str) -> None:
        if found := _DONE.match(line):
            self.seconds[found["stage"]] = float(found["seconds"])
            if found["cores"] is not None:
                self.core_seconds[found["stage"]] = float(found["cores"])
            if left := sum(stage not in self.stages for stage in self._todo):
                self._tell(
                    f"finished {found['stage']} in {format_duration(float(found['seconds']))}, stages left: {left}"
                )
        elif _PROGRESS.match(line) and time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._tell(f"progress: {line}")
        if line.lower().startswith("error: "):
            self.complaints.append(line[len("error: ") :])


class Campaign:
    """The source of experiments for `flows.dvc.repro.run_experiments`.

    A stage that two runs share has the same hash in both. A run waits while another run has a stage before it that both
    need; afterwards it takes the outs from DVC's run cache. So models and teachers' answers are made once.
    """

    def __init__(
        self, root: Path, runs: Sequence[Run], folder: Path, say: Callable[[str], None], jobs: int = 1
    ) -> None:
        """`folder` holds the records of the study; a run whose record has its key is finished."""
        self._root, self._folder, self._say, self._jobs = root, folder, say, jobs
        self._records = {record.name: record for record in read_records(folder)}
        self._estimates = Estimates(root, self._records.values())
        self.runs = list(runs)
        self.waiting = [run for run in runs if self.find_record(run) is None]
        self._made = {key for run in runs if run not in self.waiting for key in run.stages.values()}
        self._running: dict[str, tuple[Run, _RunLog]] = {}
        self.failed: dict[str, str] = {}  # reason by name of the run
        self.moved: list[str] = []  # files that changed since the runs were planned; then no further run starts
        self._planned = self._describe_running() if self.waiting else ""

    def find_record(self, run: Run) -> StudyRecord | None:
        """The record of a finished run; None if there is none with these parameters and this code."""
        found = self._records.get(run.file)
        return found if found is not None and found.key == run.key else None

    def estimate_seconds_left(self) -> float | None:
        """Estimate of the wall seconds until all runs have ended; None if a stage that is left was never timed here."""
        running = [run for run, _ in self._running.values()]
        spent = sum(time.monotonic() - heard.start for _, heard in self._running.values())
        total = self._estimates.estimate_all([*running, *self.waiting], self._made, self._jobs)
        return None if total is None else max(total - spent / self._jobs, 0.0)

    def list_missing_stages(self, run: Run) -> list[str]:
        """The stages of `run` that no finished run of the study has executed."""
        return [stage for stage, key in run.stages.items() if key not in self._made]

    # --- called by flows.dvc.repro.run_experiments
    # ------------------------------------------------------------------------

    @property
    def left(self) -> bool:
        """Whether another run can start."""
        return bool(self.waiting) and not self.moved

    def next(self) -> dvc.Experiment | None:
        """The first waiting run that shares no unfinished stage with a running one."""
        self._made |= {run.stages[stage] for run, heard in self._running.values() for stage in heard.passed}
        busy = {key for run, _ in self._running.values() for key in run.stages.values()} - self._made
        for run in self.waiting:
            if not busy & set(run.stages.values()):
                self.moved = list_differing_files(
                    self._root, self._planned, self._describe_running(), *_BESIDE, *run.made_from
                )
                if self.moved:
                    return None
                self.waiting.remove(run)
                return self._hand_out(run)
        return None

    def finish(self, experiment: dvc.Experiment, code: int, log: Path) -> None:
        """Keeps the record of a run that succeeded; prints the reason for one that failed."""
        run, heard = self._running.pop(experiment.name)
        took = format_duration(time.monotonic() - heard.start)
        reason = "; ".join(dict.fromkeys(heard.complaints)) or f"dvc ended with exit code {code}"
        if code == 0:
            reason = self._keep_record(run, heard.seconds, heard.core_seconds)
        if reason:
            self.failed[run.name] = f"{reason} (full output: {log})"
            self._tell(run, f"FAILED after {took}: {self.failed[run.name]}")
        else:
            self._tell(run, f"done in {took}: {_format_result(self._records[run.file])}; {self._describe_outlook()}")

    def _hand_out(self, run: Run) -> dvc.Experiment:
        todo = self.list_missing_stages(run)
        heard = _RunLog(todo, partial(self._tell, run))
        self._running[run.name] = (run, heard)
        self._tell(run, f"started; stages to run: {', '.join(todo)}")
        return dvc.Experiment(run.name, run.overrides, run.targets, heard)

    def adopt(self) -> None:
        """Keeps the records of experiments that succeeded after the command that started them had ended."""
        for run in list(self.waiting):
            if find_recorded(self._root, run.name) is not None and not self._keep_record(run, {}, {}):
                self.waiting.remove(run)
                self._tell(run, f"already finished: {_format_result(self._records[run.file])}")

    def _keep_record(self, run: Run, seconds: Mapping[str, float], core_seconds: Mapping[str, float]) -> str:
        """Reads the results and writes the record. Returns an error message, empty on success."""
        done = find_recorded(self._root, run.name)
        if done is None:
            return "dvc succeeded but recorded no experiment with this name"
        if moved := find_departures(run, done, self._planned):
            dvc.remove_experiment(self._root, run.name)  # its name holds the key of what was planned
            return f"{', '.join(moved)} changed while the run started; its result was removed"
        try:
            record = make_record(run, done, seconds, core_seconds)
        except (FileNotFoundError, KeyError, ParamsError) as error:
            return f"can't read its results: {error}"
        write_record(self._folder, record)
        self._records[run.file] = record
        self._made |= set(run.stages.values())
        self._estimates.learn(seconds)
        return ""

    def _describe_running(self) -> str:
        return take_snapshot(self._root, *_BESIDE, "stages")

    def _describe_outlook(self) -> str:
        count = len(self.waiting) + len(self._running)
        seconds = self.estimate_seconds_left()
        return f"runs left: {count}" + (f", about {format_duration(seconds)}" if count and seconds else "")

    def _tell(self, run: Run, text: str) -> None:
        ended = len(self.runs) - len(self.waiting) - len(self._running)
        self._say(f"[{ended}/{len(self.runs)}] {run.label} {text}")


def _format_result(record: StudyRecord) -> str:
    if record.scores:
        return f"{100 * record.scores['accuracy']:.1f} % of {record.scores['questions']} test questions correct"
    return f"validation {100 * record.validation['start']:.1f} % to {100 * record.validation['end']:.1f} %"

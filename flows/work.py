"""One stage's work: checked before it starts, run at most once, and refused when its inputs moved meanwhile."""

import importlib
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from flows.closure import find_unlisted_files
from flows.code_record import WatchedCode, forget_accepted, is_code, write_code_record
from flows.copies import check_copies
from flows.dvc.orphans import hold_copy
from flows.estimate.cards import name_machine
from flows.fingerprint import Fingerprint
from flows.jobs import UnknownTarget, list_needed_jobs, open_job
from flows.launcher import is_job
from flows.lockfile import mark_recorded, mark_unrecorded
from flows.rank_processes import join_ranks
from flows.room import check_cache_room, check_folders
from flows.slots import hold_gpu_slot
from flows.took import measure_taken, plan_or_explain
from flows.training_owner import own_training_state
from flows.watched_files import refuse_unwatchable
from stages.config.params import load_params
from stages.config.yaml import ParamsError
from stages.job.job import Job
from stages.job.progress import Progress


class Unlisted(ValueError):
    """Code that a stage reaches and DVC does not watch for it; the message lists it and says what to do."""


class InputsMoved(RuntimeError):
    """Parameters, inputs or code changed while the stage ran, so its result belongs to neither state."""


class Work:
    """One run of one stage in this process.

    DVC hashes parameters and dependencies when a stage ends. An edit while it ran would be recorded as if it had been
    used, so the state of all of them is taken before the work and compared after it.
    """

    def __init__(self, stage: str, item: str | None, root: Path) -> None:
        """Loads and checks before anything is computed.

        Raises ParamsError, UnknownTarget, MissingInput, Unwatchable, NoRoom; under DVC also Unlisted.
        """
        self.params = params = load_params(root / "params.yaml")
        self.job = open_job(stage, item, root, params)
        if self.job.project != root:
            check_copies(root, list_needed_jobs(root, params))
        check_folders(self.job, by_dvc=self._by_dvc)
        for path in self.job.inputs:
            if not path.exists():
                raise self.job.explain_missing(str(path.relative_to(root) if path.is_relative_to(root) else path))
        refuse_unwatchable(list_data_inputs(self.job))
        if self._by_dvc and (files := find_unlisted_files(root, stage)):
            raise Unlisted(
                f"stage {stage} reaches {', '.join(files)}, which dvc.yaml does not list, so a change of it would go "
                "unnoticed; bring dvc.yaml up to date with: python -m flows.closure"
            )
        self._code = WatchedCode(root, stage, list_code_inputs(self.job))
        self._given = Fingerprint(root, list_data_inputs(self.job), self.job.values)
        self.started = False
        self.ended = threading.Event()
        self.error: BaseException | None = None

    @property
    def digest(self) -> str:
        """Hash of parameters, inputs and code."""
        return f"{self._given.digest}{self._code.digest}"

    @property
    def _by_dvc(self) -> bool:
        """Whether DVC has started this process and will record the result."""
        return "DVC_STAGE" in os.environ

    def run(self, progress: Progress) -> None:
        """Does the work, once; `ended` and `error` say afterwards how it went.

        Raises what the stage raises, InputsMoved, or NoRoom when DVC could not keep the result.
        """
        if self.started:
            raise RuntimeError(f"{self.job.name} was started twice in one process")
        self.started = True
        try:
            self._run(progress)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()

    def _run(self, progress: Progress) -> None:
        job = replace(self.job, progress=progress, fingerprint=self._given.digest, code=self._code.digest)
        mark_unrecorded(job.root, job.name)
        job.remove_unfinished()
        began = sum(os.times()[:4])
        with own_training_state(job) as folder:
            seconds = self._finish(replace(job, run_folder=folder))
        places = (str(path.relative_to(job.root)) for path in (job.out, job.reports) if path.exists())
        cores = sum(os.times()[:4]) - began  # of this process and of its children that have ended
        progress.say(
            f"{job.name}: done in {seconds:.1f} s ({cores:.1f} core-seconds); results in {' and '.join(places)}"
        )

    def _finish(self, job: Job) -> float:
        planned = plan_or_explain(job, self.params)
        with hold_gpu_slot(job), self.hold_copy():
            seconds = self._compute(job)
        if moved := self._find_moved():
            raise InputsMoved(
                f"{', '.join(moved)} changed while {job.name} ran, so its result fits neither state "
                f"and is not recorded; run it again: dvc repro {job.name}"
            )
        job.add_measurements(machine=name_machine(), planned=planned, took=measure_taken(job))
        job.write_timing(seconds)
        write_code_record(self._code.record(), job.reports, job.store)
        forget_accepted(job.reports)
        if self._by_dvc:
            check_cache_room(job)
            mark_recorded(job.root, job.name)
        return seconds

    def hold_copy(self) -> AbstractContextManager[object]:
        """Says, for a `with` block, that the copy in which an experiment runs is in use; nothing elsewhere."""
        if is_job() or self.job.project == self.job.root:  # for a job its submitter holds it
            return nullcontext()
        return hold_copy(self.job.root)

    def _compute(self, job: Job) -> float:
        start = time.monotonic()
        with join_ranks(job):
            importlib.import_module(f"stages.{job.stage}").run(job)
        return time.monotonic() - start

    def _find_moved(self) -> list[str]:
        try:
            params = load_params(self.job.root / "params.yaml")
            values = open_job(self.job.stage, self.job.item, self.job.root, params).values
        except (ParamsError, UnknownTarget):
            return ["params.yaml"]
        moved = self._given.find_changes(values)
        return moved + self._code.find_changes()


def list_code_inputs(job: Job) -> list[str]:
    """Declared inputs that are code: what `world.code` and the like name for the tiny profile."""
    return [path for path in job.paths if is_code(path)]


def list_data_inputs(job: Job) -> list[Path]:
    """Declared inputs that are data: results of other stages, and users' files."""
    return [job.root / path for path in job.paths if not is_code(path)]

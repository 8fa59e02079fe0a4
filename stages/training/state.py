"""Checkpoints to resume a training loop after a crash: all of its models together, outside the stage's output.

    <store>/runs/<stage>/<fingerprint>/step_00000040/{student/, discriminator/, loop.json, DONE}
                                      /recorded/step_00000041.json

The fingerprint covers parameters and inputs, so a run resumes only from its own checkpoints. A checkpoint is written
while the next steps compute (`stages/training/background.py`), under another name, and renamed when it is complete: a
kill at any moment leaves the one before. Randomness is a function of (seed, stage, step), so no generator state is
saved: on CPU, a run that is killed and resumed writes the same bytes as an uninterrupted one.

With several ranks, each writes its part of weights and moments and the first writes everything else. A run with another
number of ranks or ZeRO stage resumes, too. All ranks run the same steps, save together and stop together. The folder
must be shared by all ranks.
"""

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.config.runtime import Runtime
from stages.config.tracking import Tracking
from stages.config.yaml import flatten
from stages.job.failure import Failure
from stages.job.files import replacing_folder, sync_folder, write_text
from stages.job.job import Job
from stages.job.stop import STOP
from stages.trackers.tracked_run import TrackedRun
from stages.trackers.trackers import CLOSE_SECONDS, Trackers
from stages.training.background import BackgroundWriter, HostCopies
from stages.training.engine_config import explain_config
from stages.training.guard import StepGuard
from stages.training.ranks import get_ranks
from stages.training.room import explain_full_disk, format_bytes, make_no_room, measure_folder, measure_free
from stages.training.tensorboard import EVENT_FOLDER as BOARDS
from stages.training.tensorboard import TensorBoardWriter
from stages.training.trainer import Trainer

TRACKING = "tracking"  # folder of trackers in the store
DONE = "DONE"
_LATEST = 6  # rows of each record that are shown during training
_LOOP = "loop.json"
_COPY = "copy.safetensors"


class TrainingState:
    """The checkpoints of one loop.

    `records` holds the rows of the loop (history, samples) by name; they are saved and restored with the models. `copy`
    is an additional set of weights (the best so far; on the first rank, empty on others) or None.
    """

    def __init__(self, job: Job, trainers: Mapping[str, Trainer]) -> None:
        self.job = job
        self.trainers = trainers
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.copy: dict[str, Tensor] | None = None
        self._ranks = get_ranks()
        self._folder = job.run_folder
        self._folder_id = _identify(self._folder)
        self._runtime = job.block(Runtime)
        self._saved, self._waited = time.monotonic(), 0.0  # when the last checkpoint began, how long its step waited
        self._copies, self._writer = HostCopies(job.progress.say), BackgroundWriter()
        self.guard = StepGuard(job.name, describe_kept=self._describe_kept, say=job.progress.say)
        for trainer in trainers.values():
            trainer.guard = self.guard
        if self._ranks.first:
            for name, trainer in trainers.items():
                job.progress.say(explain_config(job.name, name, trainer.config))
        self.first = self._resume()  # completed steps
        self._checkpoint_bytes = sum(trainer.estimate_state_bytes() for trainer in trainers.values())
        self._warn_of_little_room()
        shown = self._folder is not None and self._ranks.first
        self._checked = {name: len(rows) for name, rows in self.records.items()}  # rows known to be finite
        tracking, run = job.block(Tracking), describe_run(job)
        boards = job.store / BOARDS / job.name / job.fingerprint[:16]
        has_board = shown and "tensorboard" in tracking.tools
        self._board = TensorBoardWriter(boards if has_board else None, self.records, self.first, job.progress.say)
        self.images: dict[str, Sequence[bytes]] = {}  # of the questions in the record `samples`, for trackers
        self._trackers = Trackers(tracking.tools if shown else (), run, tracking.tables, job.progress.say)

    def iter_steps(self, count: int, title: str) -> Iterator[int]:
        """Yields the remaining steps of `count` with a progress bar; saves after a step when a checkpoint is due.

        Raises SystemExit, after saving, when the process was asked to stop, NonFinite when a number in the records or
        a weight to be saved is not finite, Failure when a checkpoint could not be written.
        """
        began = time.monotonic()
        with STOP.awaiting(), self._tracking(), contextlib.closing(self._board), self._completing_last():
            for step in self.job.progress.track(range(self.first, count), title, done=self.first):
                self.guard.step = step
                yield step
                self._finish_step(step + 1, count)
                seconds = round(time.monotonic() - began, 3)
                self.job.add_measurements(steps={"done": step + 1 - self.first, "seconds": seconds})
        self.guard.step = None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns the list of records `name`; append rows to it."""
        return self.records.setdefault(name, [])

    # --- responses of a step, recorded before the update -------------------------------------------------------------

    def read_record(self, step: int) -> Any | None:
        """Returns what `record` wrote for this step in an earlier run with the same fingerprint, or None."""
        path = self._record_path(step)
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None

    def record(self, step: int, value: Any) -> None:
        """Writes `value` (JSON) to disk until a checkpoint contains the step, so that a resumed step reuses it."""
        self._check_owned()
        if (path := self._record_path(step)) and self._ranks.first:
            with explain_full_disk(path.parents[1], self._describe_kept):
                write_text(path, json.dumps(value, ensure_ascii=False))

    def _record_path(self, step: int) -> Path | None:
        return self._folder / "recorded" / f"step_{step + 1:08d}.json" if self._folder else None

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _check_owned(self) -> None:
        """Raises Failure when the state's folder is not the one of the start: another process has taken it over."""
        if _identify(self._folder) != self._folder_id:
            raise Failure(
                f"{self.job.name}: another process has taken over the training state in {self._folder} while this one "
                "stood still; this one ends and leaves it alone"
            )

    def _finish_step(self, done: int, count: int) -> None:
        self._check_owned()
        self._board.write(self.records)
        self._trackers.write(self.records, self.images)
        self._check_records()
        for name, rows in self.records.items():
            self.job.progress.show_latest(f"{self.job.name}: latest {name}", rows[-_LATEST:])
        late = self._ranks.first and time.monotonic() - self._saved >= find_interval(self._runtime, self._waited)
        # any rank may receive the stop request, or fail to write
        due, code, failed = self._ranks.max(int(late), STOP.code or 0, int(self._writer.failed))
        if failed:
            self._finish_writing()
        if self._folder and done < count and (due or code):
            with self.job.measure_time("checkpoint"):  # what the step waits, not what is written beside the next ones
                try:
                    if code:
                        self._save_last(self._folder, done)
                    else:
                        self._save(self._folder, done)
                except (OSError, RuntimeError):
                    self._check_owned()  # a takeover in the middle is the reason that counts
                    raise
        if code and done < count:
            kept = f"training state is in {self._folder}" if self._folder else "nothing is saved"
            self.job.progress.say(f"{self.job.name}: stopped after step {done} of {count}; {kept}")
            raise SystemExit(code)

    @contextlib.contextmanager
    def _tracking(self) -> Iterator[None]:
        """For this block trackers get the rows; at its end they are told whether training came to its end."""
        finished = False
        try:
            yield
            finished = True
        finally:
            self._trackers.close(finished, min(CLOSE_SECONDS, STOP.seconds_left))

    def _check_records(self) -> None:
        for name, rows in self.records.items():
            for row in rows[self._checked.get(name, 0) :]:
                self.guard.check_row(row)
            self._checked[name] = len(rows)

    def _describe_kept(self) -> str:
        """Returns what a next run starts from, when no checkpoint is being written any more."""
        self._writer.await_end()
        return self._describe_complete()

    def _describe_complete(self) -> str:
        found = list_complete_checkpoints(self._folder) if self._folder else []
        if not found:
            return "nothing of this run is kept, because it wrote no checkpoint yet (runtime.checkpoint_minutes)"
        return f"the last good checkpoint stays and is resumed from: {found[-1]}"

    def _check_weights(self) -> None:
        for name, trainer in self.trainers.items():
            for broken in self._ranks.gather(trainer.find_broken_weight()):
                if broken:
                    self.guard.stop(f"{name}: a weight", f"not finite ({broken})")

    def _save(self, folder: Path, done: int) -> None:
        """Starts to write a checkpoint, when the one before is written."""
        begun = time.monotonic()
        if not self._finish_writing():
            return
        self._check_weights()
        self._check_room(folder)
        started, final = time.monotonic(), folder / f"step_{done:08d}"
        state = {name: trainer.list_state() for name, trainer in self.trainers.items()}
        copies = self._copies.take(state)
        loop = self._describe_loop(done) if self._ranks.first else ""
        best = self.copy  # a later one replaces it, nobody changes it
        with contextlib.ExitStack() as stack:
            stack.enter_context(explain_full_disk(folder, self._describe_complete))
            checkpoint = self._ranks.broadcast(lambda: stack.enter_context(replacing_folder(final)))
            stack.callback(self._check_owned)
            commit = stack.pop_all()

        def write() -> None:
            with explain_full_disk(folder, self._describe_complete):  # as long as the unfinished files fill the disk
                for name, trainer in self.trainers.items():
                    trainer.save_state(checkpoint, name, (copies or state)[name])
                if self._ranks.first:
                    _write_loop(checkpoint, loop, done, best)

        def clear_up() -> None:
            if self._ranks.first:
                sync_folder(folder)  # before those that it replaces are deleted
                self._checkpoint_bytes = measure_folder(final)
                self._clear_up(folder, done)
            STOP.save_seconds = time.monotonic() - started

        self._writer.start(write, commit, clear_up)
        if copies is None:
            self._finish_writing()
        self._saved = time.monotonic()
        self._waited = self._saved - begun

    def _save_last(self, folder: Path, done: int) -> None:
        """Writes a checkpoint to the end, because the process is to stop, within the time that is left for it.

        One in flight comes first. If there is no time for another one then, it was the last.
        """
        with STOP.completing():
            if self._finish_writing() and self._ranks.broadcast(lambda: STOP.seconds_left >= STOP.save_seconds):
                self._save(folder, done)
                self._finish_writing()

    def _finish_writing(self) -> bool:
        """Waits for the checkpoint in flight; returns whether it is over, False when a stop request leaves no time.

        If it could not be written, the first rank raises the reason, and the others exit.
        """
        try:
            return self._writer.finish()
        except Exception:
            if not self._ranks.first:
                raise SystemExit(0) from None
            raise

    @contextlib.contextmanager
    def _completing_last(self) -> Iterator[None]:
        """When the block ends, however it ends, waits for the checkpoint in flight as long as the process may."""
        try:
            yield
        finally:
            with STOP.completing():
                try:
                    written = self._writer.finish()
                    reason = "" if written else "the time to stop is over"
                except Exception as error:  # training is over, and may have another reason to end
                    reason = str(error)
                if reason and self._ranks.first:
                    self.job.progress.say(f"warning: {self.job.name}: the last checkpoint was not written: {reason}")

    def _check_room(self, folder: Path) -> None:
        """Raises Failure when the next checkpoint would not fit."""
        if self._ranks.first and measure_free(folder) < self._checkpoint_bytes:
            raise make_no_room(folder, self._describe_kept(), self._checkpoint_bytes)

    def _warn_of_little_room(self) -> None:
        """Says at the start when the disk has not enough room for the checkpoints to come."""
        if self._folder is None or not self._ranks.first:
            return
        count, free = self._runtime.keep_checkpoints + 1, measure_free(self._folder)  # the new one beside those kept
        count -= len(list_complete_checkpoints(self._folder))
        if free < count * self._checkpoint_bytes:
            self.job.progress.say(
                f"warning: {self.job.name}: {format_bytes(free)} free in {self._folder}, but checkpoints will need "
                f"about {format_bytes(count * self._checkpoint_bytes)}; make room, or lower runtime.keep_checkpoints"
            )

    def _describe_loop(self, done: int) -> str:
        loop = {"step": done, "code": self.job.code, "records": self.records}
        loop["norms"] = {name: list(trainer.norms.norms) for name, trainer in self.trainers.items()}
        return json.dumps(loop, allow_nan=False)

    def _clear_up(self, folder: Path, done: int) -> None:
        for old in list_complete_checkpoints(folder)[: -self._runtime.keep_checkpoints]:
            shutil.rmtree(old)
        for path in (folder / "recorded").glob("step_*.json"):
            if path.stem <= f"step_{done:08d}":
                path.unlink()

    def _resume(self) -> int:
        """Loads the newest complete checkpoint and returns its number of steps; 0 if there is none."""
        if self._folder is None:
            return 0
        checkpoint = self._ranks.broadcast(functools.partial(self._find_newest, self._folder))
        if checkpoint is None:
            return 0
        loop = json.loads((checkpoint / _LOOP).read_text(encoding="utf-8"))
        if loop["code"] != self.job.code:  # common case: a bug fix after a crash, so the run resumes
            self.job.progress.say(
                f"warning: {self.job.name}: its code has changed since {checkpoint}; set RIL_FRESH=1 to restart"
            )
        for name, trainer in self.trainers.items():
            trainer.load_state(checkpoint, name)
            trainer.norms.norms.extend(loop.get("norms", {}).get(name, ()))
        for name, rows in loop["records"].items():
            self.rows(name).extend(rows)
        if (checkpoint / _COPY).is_file():
            self.copy = load_tensors(checkpoint / _COPY) if self._ranks.first else {}
        self.job.progress.say(f"{self.job.name}: resumes after step {loop['step']}, from {checkpoint}")
        return int(loop["step"])

    def _find_newest(self, folder: Path) -> Path | None:
        self._inspect_folder(folder)
        return next(reversed(list_complete_checkpoints(folder)), None)

    def _inspect_folder(self, folder: Path) -> None:
        """Applies RIL_FRESH, removes partial checkpoints of killed processes, reports state of other settings."""
        if os.environ.get("RIL_FRESH") == "1":
            for old in [*folder.glob("step_*"), *folder.glob("recorded")]:
                shutil.rmtree(old)
        for half in folder.glob(".step_*.partial"):
            shutil.rmtree(half)
        with contextlib.suppress(FileNotFoundError):
            others = [other for other in folder.parent.iterdir() if other != folder and any(other.glob("step_*"))]
            if others:
                self.job.progress.say(
                    f"{self.job.name}: training state of {len(others)} runs with other parameters or inputs is in "
                    f"{folder.parent}; it is reused if these settings return and can be deleted"
                )


def describe_run(job: Job) -> TrackedRun:
    """Returns what trackers are told about a run of this stage."""
    block = job.block(Tracking)
    return TrackedRun(
        name=job.name,
        id=f"{job.name.replace('@', '-')}-{job.fingerprint[:16]}",
        project=block.project,
        group=job.experiment or None,
        settings=flatten(job.values),
        store=job.store / TRACKING,
        root=job.root,
        mlflow_uri=block.mlflow_uri,
    )


def find_interval(runtime: Runtime, waited: float) -> float:
    """Returns the seconds from one checkpoint to the next: enough that steps wait no more than its share for them."""
    share = runtime.checkpoint_share
    return max(60 * runtime.checkpoint_minutes, waited * (1 - share) / share) * bool(runtime.checkpoint_minutes)


def _write_loop(checkpoint: Path, loop: str, done: int, copy: Mapping[str, Tensor] | None) -> None:
    if copy is not None:
        save_tensors(copy, checkpoint / _COPY)
    (checkpoint / _LOOP).write_text(loop, encoding="utf-8")
    (checkpoint / DONE).write_text(f"{done}\n")


def _identify(folder: Path | None) -> tuple[int, int] | None:
    """Returns what tells a folder from another one of its name; None when there is none."""
    if folder is None or not folder.is_dir():
        return None
    found = folder.stat()
    return found.st_dev, found.st_ino


def list_complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step_*/{DONE}"))


def has_checkpoint(job: Job) -> bool:
    """Returns whether training of this job would resume from a checkpoint."""
    return (
        job.run_folder is not None
        and os.environ.get("RIL_FRESH") != "1"
        and bool(list_complete_checkpoints(job.run_folder))
    )


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Loads tensors written by `save_tensors`."""
    from safetensors.torch import load_file

    return dict(load_file(path))

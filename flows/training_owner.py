"""The owner of a training state: one process at a time uses it, also where checkouts or machines share a store.

    <store>/runs/<stage>/<fingerprint>         the state, private to its user
    <store>/owners/<stage>-<fingerprint>.*     lock, owner.json, and beat, a sign of life that the owner renews

A second process with equal parameters and inputs waits and says for whom. Whether the owner is alive,

- the kernel's lock decides where both run on the same machine;
- elsewhere the sign of life: whoever waits watches whether it changes, by its own monotonic clock. Clocks of two
  machines are never compared.

An owner may also be stopped (SIGSTOP, a suspended machine) and wake up when another machine has taken over. The
takeover renames the folder of the state, so that what the former owner writes finds no folder; `TrainingState` then
ends its stage.

Training state holds pickles of DeepSpeed, so a folder that another user could have written to is not used.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stages.config.model import Model
from stages.job.accounts import name_user
from stages.job.failure import Failure
from stages.job.files import make_folder, replacing, share_with_group
from stages.job.job import Job
from stages.job.lock_files import make_native_lock
from stages.job.silence import Silence, repeat_work

BEAT_SECONDS = 5.0
DEAD_SECONDS = 120.0  # an owner on another machine without a new sign of life counts as dead
STOPPED_SECONDS = 600.0  # an owner on this machine that lives and gives no sign: nobody waits longer for it
_POLL_SECONDS = 0.5
_LIMIT_HOURS = 14 * 24.0  # as long as a run of dvc may take
_KERNEL = Path("/proc/sys/kernel/random/boot_id")  # equal for all processes, and containers, of one running kernel


@dataclass(frozen=True)
class Owner:
    """What an owner says of itself."""

    token: str
    kernel: str
    host: str
    process: int
    user: str
    checkout: str
    since: str  # for people only
    state: str = ""  # name of the folder of its state
    ended: bool = False  # it has ended and left its state to the next one

    def __str__(self) -> str:
        return f"process {self.process} of {self.user} on {self.host}, in {self.checkout}, since {self.since}"


def trains(job: Job) -> bool:
    """Whether the stage of `job` keeps training state."""
    built = any(isinstance(block, Model) and block.build is not None for block in job.given.values())
    return bool(job.fingerprint) and (job.definition.ranks or built)


@contextmanager
def own_training_state(job: Job) -> Iterator[Path | None]:
    """For this block the process owns the training state of `job`; yields its folder, None where none is kept.

    When the block ends without an error the state is deleted, because the stage's output holds what training came to;
    otherwise it stays for the next run. Raises Failure when the store can't be written to, the state could have been
    written by another user, or its owner is stopped or does not end.
    """
    if not trains(job):
        yield None
        return
    place = _Place(job)
    place.prepare()
    lock = place.take()
    try:
        with _renew_beat(place):
            yield place.folder
    except BaseException:
        place.leave()
        raise
    else:
        place.discard()
    finally:
        lock.release()


class _Place:
    """Where the state of a run and the files of its owner are."""

    def __init__(self, job: Job) -> None:
        self._name, self._say = job.name, job.progress.say
        self._runs, self._stem = job.store / "runs" / job.name, job.fingerprint[:16]
        owners = job.store / "owners"
        self.lock, self.record, self.beat = (
            owners / f"{job.name}-{self._stem}.{kind}" for kind in ("lock", "json", "beat")
        )
        self.me = Owner(
            token=secrets.token_hex(8),
            kernel=_KERNEL.read_text().strip() if _KERNEL.is_file() else socket.gethostname(),
            host=socket.gethostname(),
            process=os.getpid(),
            user=name_user(os.geteuid()),
            checkout=str(job.root),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        self.folder = self._runs / self._stem

    def prepare(self) -> None:
        """Makes the folders; raises Failure when this user can't write to them."""
        try:
            for folder in (self._runs, self.record.parent):
                make_folder(folder)
                probe = folder / f".{self.me.token}.partial"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise Failure(
                f"{self._name}: no training state can be kept in {self._runs.parents[1]} ({error.strerror}: "
                f"{error.filename}); make it writable for this user, or set RIL_STORE to a folder that is"
            ) from error

    # --- becoming the owner -------------------------------------------------------------------------------------------

    def take(self) -> FileLock:
        """Waits until no other process owns the state, takes it over and returns the lock."""
        began, watch, said = time.monotonic(), Silence(), ""
        while True:
            lock = self._try_lock()
            owner = _read_owner(self.record)
            silent = watch.measure((owner.token if owner else None, _read_beat(self.beat)))
            if lock is not None:
                dead = owner is None or owner.ended or owner.kernel == self.me.kernel or silent > DEAD_SECONDS
                with contextlib.ExitStack() as stack:
                    stack.callback(lock.release)
                    if dead and self._claim(owner):
                        stack.pop_all()  # the lock is kept
                        return lock
            elif silent > STOPPED_SECONDS:
                raise Failure(
                    f"{self._name}: its training state belongs to {owner}, which lives and has given no sign for "
                    f"{silent:.0f} s, so it is stopped; continue it with kill -CONT, or end it with kill -KILL"
                )
            line = f"{self._name}: waits for who trains this: {owner}" + (
                f"; no sign of life for {DEAD_SECONDS / 2:.0f} s" if silent > DEAD_SECONDS / 2 else ""
            )
            if owner is not None and not owner.ended and line != said:
                said = line
                self._say(line)
            if time.monotonic() - began > _LIMIT_HOURS * 3600:
                raise Failure(f"{self._name}: waited {_LIMIT_HOURS:g} hours for {owner}")
            time.sleep(_POLL_SECONDS)

    def _try_lock(self) -> FileLock | None:
        lock = make_native_lock(self.lock)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        share_with_group(Path(lock.lock_file))
        return lock

    def _claim(self, former: Owner | None) -> bool:
        """Makes this process the owner in place of `former`; False when another machine was faster.

        Each step is one that only one process can do: moving the former owner's record away, and linking the own.
        """
        new = self.record.with_name(f".{self.record.name}.{self.me.token}.partial")
        if former is not None:
            try:
                self.record.rename(new)
            except FileNotFoundError:
                return False
            if not former.ended and former.kernel != self.me.kernel:
                self._say(f"{self._name}: takes over from {former}: no sign of life for {DEAD_SECONDS:.0f} s")
                self._move_away(former.state)
        self.folder = self._find_state() or self._next_free()
        self.me = replace(self.me, state=self.folder.name)
        try:
            self._write_record(new)
            os.link(new, self.record)
        except FileExistsError:
            return False
        finally:
            new.unlink(missing_ok=True)  # also when the disk is full
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.folder.chmod(0o700)  # without the setgid bit of a team's store
        return True

    def _write_record(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self.me)), encoding="utf-8")
        share_with_group(path)

    # --- the folder of the state --------------------------------------------------------------------------------------

    def _list_states(self) -> list[Path]:
        """The folders of this run's state, the latest last: <fingerprint>, <fingerprint>-2, ..."""
        found = [path for path in self._runs.glob(f"{self._stem}*") if path.name[len(self._stem) :][1:].isdigit()]
        whole = self._runs / self._stem
        return [*([whole] if whole.is_symlink() or whole.exists() else []), *sorted(found, key=_read_generation)]

    def _next_free(self) -> Path:
        found = self._list_states()
        return self._runs / f"{self._stem}-{_read_generation(found[-1]) + 1}" if found else self._runs / self._stem

    def _find_state(self) -> Path | None:
        """The latest state of this user; None when there is none.

        Raises Failure when others could have written to it.
        """
        for state in reversed(self._list_states()):
            status = state.lstat()
            if status.st_uid != os.geteuid():
                self._say(
                    f"{self._name}: training state in {state} is private to {name_user(status.st_uid)} and is not used"
                )
                continue
            if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
                raise Failure(
                    f"{self._name}: training state in {state} could have been written by other users (mode "
                    f"{stat.S_IMODE(status.st_mode):o}); delete it, or if you trust it: chmod -R go-w {state}"
                )
            state.chmod(0o700)
            return state
        return None

    def _move_away(self, name: str) -> None:
        """Renames a state whose owner may still wake up: what it writes then finds no folder."""
        if name in {state.name for state in self._list_states()}:
            with contextlib.suppress(PermissionError):  # another user's in a folder with the sticky bit: it stays apart
                (self._runs / name).rename(self._next_free())

    # --- the end ------------------------------------------------------------------------------------------------------

    def owns(self) -> bool:
        """Whether no other process has taken the state over."""
        owner = _read_owner(self.record)
        return owner is not None and owner.token == self.me.token

    def leave(self) -> None:
        """Says that this owner has ended and left its state to the next one."""
        if not self.owns():
            return
        self.me = replace(self.me, ended=True)
        # a full disk: the next owner waits for a sign of life instead
        with contextlib.suppress(OSError), replacing(self.record) as new:
            self._write_record(new)

    def discard(self) -> None:
        """Deletes the state and all that is known of its owner; nothing when another process has taken it over."""
        if self.owns():
            for state in self._list_states():
                shutil.rmtree(state, ignore_errors=True)  # another user's stays
            for path in (self.record, self.beat, self.lock):
                path.unlink(missing_ok=True)


@contextmanager
def _renew_beat(place: _Place) -> Iterator[None]:
    """Renews the owner's sign of life for this block, until another process is the owner."""
    counts = itertools.count()

    def renew() -> bool:
        owns = place.owns()
        with contextlib.suppress(OSError):  # a full disk: training itself says so when it saves
            if owns:
                place.beat.write_text(f"{place.me.token} {next(counts)}")
                share_with_group(place.beat)
        return owns

    with repeat_work(renew, BEAT_SECONDS, "sign of life of a training state"):
        yield


def _read_beat(beat: Path) -> str:
    try:
        return beat.read_text()
    except OSError:
        return ""


def _read_owner(record: Path) -> Owner | None:
    """The owner that `record` names; None when there is no record or it says nothing."""
    try:
        values: Any = json.loads(record.read_text(encoding="utf-8"))
        return Owner(**values)
    except (OSError, ValueError, TypeError):
        return None


def _read_generation(state: Path) -> int:
    _, _, number = state.name.rpartition("-")
    return int(number) if "-" in state.name else 1

"""Which runs of forms are alive: each holds a lock file for as long as its process lives, whatever ends it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from stages.job.lock_files import hold_lock, read_holder


@contextmanager
def hold_run_lock(root: Path, run: str) -> Iterator[None]:
    """Holds the lock of flow run `run` for this block; the file says which process runs it and which started that."""
    folder = _lock_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    path, made = folder / run, folder.parent / f"trigger-{run}"
    with hold_lock(made, f"{os.getpid()} {os.getppid()}"):
        made.rename(path)  # there it is locked from the first moment on: `list_abandoned` looks at any time
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def list_alive(root: Path, parent: int) -> list[int]:
    """Processes that run forms and were started by process `parent`, or by one that has ended."""
    holders = [words.split() for path in _lock_folder(root).glob("*") if (words := read_holder(path))]
    return [int(own) for own, by in holders if by == str(parent) or not psutil.pid_exists(int(by))]


def mark_abandoned(root: Path) -> None:
    """Marks as crashed the runs that would stay Running for ever: those killed together with whatever watched over
    them.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    found = list_abandoned(root)
    if not found:  # nearly always: no client is made for nothing
        return
    message = "Its process was killed. What it had done is kept: the same run goes on from there."
    with get_client(sync_client=True) as client:
        for run in found:
            try:
                state = client.read_flow_run(run).state  # type: ignore[arg-type]
                if state is None or not state.is_final():
                    client.set_flow_run_state(run, Crashed(message=message), force=True)  # type: ignore[arg-type]
            except ObjectNotFound:
                continue  # a run of another server's database


def list_abandoned(root: Path) -> list[str]:
    """Flow runs whose process ended without a word; each is named once."""
    found = [path for path in _lock_folder(root).glob("*") if read_holder(path) is None]
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]


def _lock_folder(root: Path) -> Path:
    return root / ".ril" / "triggers"

"""Ties a server's lifetime to the stage: `python supervisor.py <pid of the stage> <scratch folder> <command> ...`.

The supervisor is a separate process between stage and server, because nothing else can clean up when the stage is
killed with SIGKILL: the kernel's parent-death signal reaches the server but not the server's own children (vLLM's
EngineCore and workers), and those hold the GPUs. All orphaned descendants become children of this process (it is their
subreaper), so none escapes by losing its parent or by starting a session. It uses the standard library only and starts
in 30 ms. Linux only.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0  # for the server to exit by itself: a tiny vLLM needs 0.5 s; the rest is for releasing GPUs
LOOK_SECONDS = 1.0  # between looks for processes that are stopped
PAUSE_SECONDS = 30.0  # whoever looks less often stood still itself
STOPPED_SECONDS = "RIL_STOPPED_SECONDS"  # environment variable: runtime.stopped_seconds
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.to_stop = False
        signal.signal(signal.SIGTERM, self._stop)
        for other in (
            signal.SIGINT,
            signal.SIGHUP,
        ):  # these go to the stage; handlers, unlike SIG_IGN, are not inherited
            signal.signal(other, self._ignore)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.to_stop = True

    def _ignore(self, _number: int, _frame: FrameType | None) -> None:
        pass


def read_state(process: int) -> str:
    """Returns the kernel's letter for the state of a process: T when it is stopped; "" when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def list_descendants(root: int) -> list[int]:
    """Returns the ids of all living descendants of `root`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process ended in the meantime
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, open_ends = [], [root]
    while open_ends:
        below = children.get(open_ends.pop(), [])
        found += below
        open_ends += below
    return found


def end_all(server: "subprocess.Popen[bytes]", grace: float) -> None:
    """Asks the server to stop, waits at most `grace` seconds, then kills all remaining descendants."""
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    while left := list_descendants(os.getpid()):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 5)
    server.wait()  # it is gone; when this process exits, init adopts the other orphans


def signal_on_parent_death(number: int) -> None:
    """Asks the kernel to send signal `number` to this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, number)


class StoppedServer:
    """Looks whether the server or a process below it is stopped (SIGSTOP): its clients would wait without end."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: dict[int, float] = {}  # when each process that is stopped now was first seen so
        self._looked = time.monotonic()

    def find(self) -> int | None:
        """Returns a process that has been stopped for longer than the limit; looks once a second."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        stood_still, self._looked = now - self._looked > PAUSE_SECONDS, now
        stopped = [process for process in list_descendants(os.getpid()) if read_state(process) == "T"]
        self._since = {process: self._since.get(process, now) for process in stopped if not stood_still}
        return next((process for process, since in self._since.items() if now - since >= self._limit), None)


def supervise(stage: int, scratch: Path, command: list[str]) -> int:
    """Runs `command` until it ends, the stage ends, or SIGTERM arrives; returns its exit code (128 + n after signal n).

    A server that is stopped for RIL_STOPPED_SECONDS is ended, too.

    If the stage is gone, this also removes `scratch` and what its links name: sockets, and weights of up to 17 GB.
    """
    asked = StopRequest()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, preexec_fn=partial(signal_on_parent_death, signal.SIGKILL))
    watch = StoppedServer(float(os.environ.get(STOPPED_SECONDS, "60")))
    while server.poll() is None and os.getppid() == stage and not asked.to_stop:
        time.sleep(POLL_SECONDS)
        if (stopped := watch.find()) is not None:
            print(f"process {stopped} of this server has been stopped (SIGSTOP); ending the server", flush=True)
            break
    end_all(server, GRACE_SECONDS)
    if os.getppid() != stage:
        for link in filter(Path.is_symlink, scratch.glob("*")):  # weights in memory-backed storage
            shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))

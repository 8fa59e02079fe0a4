"""One server process that the stage starts, watches and stops; `supervisor.py` stops it if the stage is killed."""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stages.engines.engine import EngineError
from stages.engines.supervisor import GRACE_SECONDS, list_descendants
from stages.job.devices import ALL_DEVICES
from stages.job.files import make_folder

TAIL_LINES = 20  # lines of the log quoted in errors: enough for the end of a Python traceback
_READY_POLL_SECONDS = 0.25
# Environment variables about this process's training rank or about in-process vLLM, and those that open a server for
# others' code, are not passed to a server. Its GPUs are in the environment that it is started with.
_NOT_FOR_SERVERS = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK"),
    *("TORCHELASTIC_RUN_ID", "VLLM_ENABLE_V1_MULTIPROCESSING", ALL_DEVICES),
    *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
}
# Ranks on one machine talk over "lo"; a server that talks to other machines (Ray) must not. Interfaces that the user
# named are passed on.
_INTERFACES = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}


class Server:
    """A running server; its output goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], scratch: Path) -> None:
        """Starts `command` with `environment` added to this process's; if this process is killed, removes `scratch`."""
        make_folder(log.parent)
        self.log = log
        self._hung = ""  # why this process has ended it
        keeper = str(Path(__file__).with_name("supervisor.py"))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_FOR_SERVERS and _INTERFACES.get(name) != value
        }
        log.unlink(missing_ok=True)  # in a shared store it may be of another user, or a link
        with log.open("wb") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", keeper, str(os.getpid()), str(scratch), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
                start_new_session=True,  # Ctrl-C goes to the stage, which then stops its servers in order
            )

    @property
    def supervisor_pid(self) -> int:
        """Process id of the server's parent, the supervisor."""
        return self._keeper.pid

    def describe_exit(self) -> str | None:
        """Returns None while the server runs; else a message with its exit code and the last lines of its log."""
        if self._hung:
            return f"{self._hung}, so it hangs and was ended; the end of {self.log}:\n{self.read_tail()}"
        code = self._keeper.poll()
        return (
            None if code is None else f"the server ended (exit code {code}); the end of {self.log}:\n{self.read_tail()}"
        )

    def read_tail(self) -> str:
        """Returns the last lines of the log."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(f"  {line.rstrip()}\n" for line in collections.deque(lines, TAIL_LINES)) or "  (empty)\n"

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Returns once `ready()`; raises EngineError with the log's end if the server ends or `seconds` pass first."""
        limit = time.monotonic() + seconds
        while not ready():
            if (why := self.describe_exit()) is not None:
                raise EngineError(why)
            if time.monotonic() > limit:
                raise EngineError(
                    f"the server was not ready after {seconds:g} s; raise start_seconds or look at the end of "
                    f"{self.log}:\n"
                    f"{self.read_tail()}"
                )
            time.sleep(_READY_POLL_SECONDS)

    def end_hanging(self, reason: str) -> None:
        """Ends a server that makes no progress; `describe_exit` gives `reason` from then on."""
        self._hung = reason
        self.stop()

    def stop(self) -> None:
        """Stops the server and all its child processes; returns when they are gone."""
        if self._keeper.poll() is not None:
            return
        self._keeper.send_signal(signal.SIGTERM)
        try:
            self._keeper.wait(GRACE_SECONDS + 20)
        except subprocess.TimeoutExpired:  # the supervisor is stopped or hangs itself
            for process in [*list_descendants(self._keeper.pid), self._keeper.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._keeper.wait()

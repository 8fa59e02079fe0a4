"""The process of the Prefect server that `ril serve` and `ril run` start, watch and end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flows.flow_run import find_server_fault
from flows.ui.access import NoServer
from flows.ui.ports import find_holder
from stages.engines.supervisor import signal_on_parent_death

_START_SECONDS = 180.0  # the first start makes the database: 20 s on a busy machine
_END_SECONDS = 20.0
_LOOK_SECONDS = 2.0  # between looks at the server
_QUOTED_LINES = 3
# Prefect's 30 s leave a queue idle.
_WAITS = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5"}


def claim_port(root: Path, host: str, port: int) -> None:
    """Returns when `host`:`port` is free.

    Waits only for a server of this project whose `ril serve` was killed: it is about to end. Raises NoServer with the
    name of any other holder.
    """
    end = time.monotonic() + _END_SECONDS
    while True:
        try:
            holder = find_holder(host, port)
        except OSError as error:
            raise NoServer(f"can't listen at {host}:{port}: {error.strerror or error}") from error
        if holder is None:
            return
        own = "flows.ui.prefect_server" in holder.command and holder.folder == str(root)
        if not own or time.monotonic() > end:
            raise NoServer(
                f"port {port} is taken by {holder}; take another with --port or --report-port, or end that process"
            )
        time.sleep(0.2)


@contextmanager
def run_server(
    root: Path, host: str, port: int, url: str, settings: Mapping[str, str], options: Sequence[str] = ()
) -> Iterator[None]:
    """A Prefect server that answers at `url` for this block, started again if it dies. Raises NoServer."""
    claim_port(root, host, port)
    ending = threading.Event()
    server = _Server(root, ["--host", host, "--port", str(port), *options], settings)
    keeper = threading.Thread(target=_keep_alive, args=(server, ending), daemon=True)
    try:
        server.wait(url)
        keeper.start()
        yield
    finally:
        ending.set()
        if keeper.is_alive():
            keeper.join(_LOOK_SECONDS * 2)
        server.end()


def _keep_alive(server: "_Server", ending: threading.Event) -> None:
    while not ending.wait(_LOOK_SECONDS):
        code = server.process.poll()
        if code is not None:
            print(f"warning: the Prefect server ended ({code}); starting it again", file=sys.stderr, flush=True)
            server.start()


class _Server:
    """The process, in a session of its own."""

    def __init__(self, root: Path, options: Sequence[str], settings: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", "flows.ui.prefect_server", *options]
        self._settings = settings
        self._log = root / ".ril" / "logs" / "prefect-server.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_bytes(b"")  # what an earlier server has written explains nothing of this one
        self.start()

    def start(self) -> None:
        """Starts it; its output goes to .ril/logs/prefect-server.log. The kernel kills it with this process."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env={**_WAITS, **os.environ, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(signal_on_parent_death, signal.SIGKILL),
            )

    def wait(self, url: str) -> None:
        """Until it answers; NoServer when it ends before or takes too long."""
        end = time.monotonic() + _START_SECONDS
        while fault := find_server_fault(url, 2.0):
            if self.process.poll() is not None:
                raise NoServer(f"the Prefect server did not start: {self._quote_log()} ({self._log})")
            if time.monotonic() > end:
                raise NoServer(f"after {_START_SECONDS:.0f} s {fault}: {self._quote_log()} ({self._log})")
            time.sleep(0.2)

    def _quote_log(self) -> str:
        written = self._log.read_text(errors="replace")
        if "Can't locate revision" in written:
            return "its database was made by a newer Prefect; move .ril/prefect/prefect.db away to start with a new one"
        return " ".join(written.strip().splitlines()[-_QUOTED_LINES:])

    def end(self) -> None:
        """Ends it and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_END_SECONDS)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

"""The project's own Prefect server: one at a time, of `ril serve` or of a `ril run`, all on the same database."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import Timeout

from flows.ui.access import Access, NoServer, grant_access, prefect_folder, revoke_access
from flows.ui.new_database import place_database
from flows.ui.server_process import claim_port, run_server
from stages.job.lock_files import hold_lock, read_holder

LOOPBACK = "127.0.0.1"
OF_RUN = "ril run"
GIVE_UP = signal.SIGUSR1  # asks a `ril run` to leave the server to `ril serve`
_GIVE_UP_SECONDS = 60.0  # a run that is starting its server looks at signals when that answers
_LOOK_SECONDS = 0.2


def hold_server(root: Path, owner: str) -> AbstractContextManager[object]:
    """The right to run the project's server, as `owner`. Raises filelock.Timeout when another process has it."""
    return hold_lock(_lock_file(root), f"{os.getpid()} {owner}")


def take_server(root: Path, owner: str) -> AbstractContextManager[object]:
    """As `hold_server`, also where a `ril run` has it: that ends its server and uses the new one.

    Raises NoServer when the holder is no `ril run`, or keeps it for a minute.
    """
    end = time.monotonic() + _GIVE_UP_SECONDS
    asked: str | None = None
    while True:
        try:
            return hold_server(root, owner)
        except Timeout as error:
            holder = read_holder(_lock_file(root)) or ""
            number, _, kind = holder.partition(" ")
            if time.monotonic() > end or (holder and kind != OF_RUN):
                raise NoServer(f"process {number} ({kind}) runs the server of this project; end it") from error
            if holder and holder != asked:
                os.kill(int(number), GIVE_UP)
                asked = holder
        time.sleep(_LOOK_SECONDS)


@contextmanager
def open_server(root: Path, host: str, port: int, options: Sequence[str] = ()) -> Iterator[Access]:
    """The server at `host`:`port` with a key of its own, for this block; the environment gets address and key.

    `options` are further arguments of `flows/ui/prefect_server.py`. Raises NoServer.
    """
    url = f"http://{format_host(host)}:{port}/api"
    claim_port(root, host, port)
    access = grant_access(root, url)
    place_database(access.home)
    os.environ.update(access.describe_client())
    try:
        with run_server(root, host, port, url, access.describe_server(host, port), options):
            yield access
    finally:
        revoke_access(root)


def format_host(host: str) -> str:
    """The host of a URL at which a server that listens at `host` is reached from this machine."""
    shown = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # nosec B104: compared, not bound
    return f"[{shown}]" if ":" in shown else shown


def _lock_file(root: Path) -> Path:
    return prefect_folder(root) / "server"

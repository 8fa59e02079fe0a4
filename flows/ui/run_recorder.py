"""The process of a `ril run` that shows the run in the Prefect UI: it reads the journals of the stages.

It starts nothing before the first stage has begun. Then it uses the project's server if one runs, of `ril serve` or of
another run, else it starts one; and when that ends before the run does, it starts its own. No stage waits for it, and
what the server has not got when the run ends is told by the next run or `ril serve`.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filelock import Timeout

from flows.environment import leave_pandas_out, prepare_patiently
from flows.flow_run import find_server_fault
from flows.loopback import list_unusable_proxies
from flows.run_journal import RUN, has_ended, list_stage_journals
from flows.ui.access import Access, NoServer, access_file, prefect_folder, read_access
from flows.ui.login import make_link
from flows.ui.own_server import GIVE_UP, LOOPBACK, OF_RUN, hold_server, open_server
from stages.job.lock_files import hold_lock

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_CLAIM = "recorder.lock"  # of the process that tells the journals of a run
_LOOK_SECONDS = 3.0  # between two looks at the journals; what is new in one is told together
_WAIT_SECONDS = 0.5
_FIRST_LOOK_SECONDS = 0.3  # before the first stage
_JOIN_SECONDS = 60.0  # for another process to start its server
_LEAVE_SECONDS = 3.0  # for `ril serve` to take the server that it wants
_PROBE_SECONDS = 5.0
_STEADY_SECONDS = 60.0  # a server that has answered for so long was no failed attempt
_ATTEMPTS = 5  # to find or start a server


class _Told:
    """What signals have told this process."""

    def __init__(self) -> None:
        self.end = self.give_up = self.starting = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(GIVE_UP, self._give_up)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.end = True
        if self.starting:  # a server may take minutes, and nobody would see it
            raise SystemExit(0)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        self.give_up = True


def journal_folder(root: Path) -> Path:
    """The folder with a folder of journals for each run. Raises NoServer."""
    return prefect_folder(root) / "journals"


def record_run(root: Path, folder: Path, show_link: bool) -> None:
    """Tells the journals in `folder` until the run has ended; says where to look, with the key if `show_link`.

    Raises NoServer when no server can be started or none stays; the journals are kept then.
    """
    told = _Told()
    with hold_lock(folder / _CLAIM, str(os.getpid())):
        while not list_stage_journals(folder):
            if has_ended(folder / RUN) or told.end:
                shutil.rmtree(folder)
                return
            time.sleep(_FIRST_LOOK_SECONDS)
        for name in list_unusable_proxies(os.environ):
            del os.environ[name]
        attempts = 0
        while attempts < _ATTEMPTS:
            with _join_server(root, told) as access:
                _say_where(root, access, show_link)
                begun = time.monotonic()
                if _follow(root, folder, access, told):
                    return
                attempts = 1 if time.monotonic() - begun > _STEADY_SECONDS else attempts + 1
            if told.give_up:
                time.sleep(_LEAVE_SECONDS)
        raise NoServer(f"the Prefect server was lost {_ATTEMPTS} times")


def record_leftovers(root: Path, access: Access) -> None:
    """Tells what runs have left whose own process could not, and removes their journals."""
    from flows.ui.flow_records import RunRecords

    for folder in sorted(journal_folder(root).glob("*")):
        if not has_ended(folder / RUN):
            continue
        try:
            with hold_lock(folder / _CLAIM, str(os.getpid())), _open_client(access) as client:
                if not (folder / RUN).is_file() or RunRecords(client, folder).tell():
                    shutil.rmtree(folder)
        except Timeout:
            continue  # another process is about to


@contextmanager
def _join_server(root: Path, told: _Told) -> Iterator[Access]:
    """The project's server for this block: another process's if it has one, else one of this process."""
    end = time.monotonic() + _JOIN_SECONDS
    while True:
        told.give_up = False
        try:
            holding = hold_server(root, OF_RUN)
        except Timeout:
            if (access := read_access(root)) is not None:
                os.environ.update(access.describe_client())
                if find_server_fault(access.url, _PROBE_SECONDS) is None:
                    break
            if time.monotonic() > end or told.end:
                raise NoServer("another process has the server of this project, and it does not answer") from None
            time.sleep(_WAIT_SECONDS)
            continue
        told.starting = True
        with holding, open_server(root, LOOPBACK, _find_port(), ["--no-services"]) as own:
            told.starting = False
            yield own
        return
    yield access


def _follow(root: Path, folder: Path, access: Access, told: _Told) -> bool:
    """Tells what is new until the run has ended (True), or its server has gone or is wanted by `ril serve` (False)."""
    import httpx

    from flows.ui.flow_records import RunRecords

    try:
        record_leftovers(root, access)
        with _open_client(access) as client:
            records = RunRecords(client, folder)
            while not told.give_up:
                ended = has_ended(folder / RUN) or told.end
                if records.tell() and ended:
                    shutil.rmtree(folder)
                if ended:
                    return True
                next_look = time.monotonic() + _LOOK_SECONDS
                while time.monotonic() < next_look and not (told.end or told.give_up or has_ended(folder / RUN)):
                    time.sleep(_WAIT_SECONDS)
    except httpx.HTTPError:
        time.sleep(_WAIT_SECONDS)
    return False


def _open_client(access: Access) -> "SyncPrefectClient":
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(access.url, auth_string=access.key)


def _find_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port: int = free.getsockname()[1]
        return port


def _say_where(root: Path, access: Access, show_link: bool) -> None:
    page = access.url.removesuffix("/api")
    link = make_link(access.url, access.key) if show_link else f"{page} (the link with the key: {access_file(root)})"
    print(f"Prefect UI of this run: {link}", file=sys.stderr, flush=True)


def main() -> None:
    """Records the run whose journals are in a folder of the project in this folder."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui.run_recorder", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="folder of the run's journals")
    parser.add_argument("--show-link", action="store_true", help="print the link that logs a browser in")
    given = parser.parse_args()
    prepare_patiently()
    leave_pandas_out()
    try:
        record_run(Path.cwd(), given.folder, given.show_link)
    except NoServer as error:
        print(f"warning: the Prefect UI does not show this run: {error}; a later run will", file=sys.stderr)
    except Exception as error:  # whatever Prefect does, the run goes on and its journals stay
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"warning: the Prefect UI does not show all of this run: {told}; a later run will", file=sys.stderr)


if __name__ == "__main__":
    main()

"""`ril serve`: a Prefect server on loopback, a form for each stage in its UI, and a process that runs what they ask
for.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from filelock import Timeout

from flows.flow_run import find_server_fault
from flows.loopback import is_loopback, list_unusable_proxies
from flows.ui.access import NoServer, access_file, prefect_folder
from flows.ui.end_runs import end_runs
from flows.ui.forms import make_forms
from flows.ui.forms_runner import REPORT, make_project_tag
from flows.ui.login import make_link
from flows.ui.own_server import format_host, open_server, take_server
from flows.ui.report_pages import serve_reports
from flows.ui.run_locks import mark_abandoned
from flows.ui.server_process import claim_port
from stages.engines.supervisor import signal_on_parent_death
from stages.job.lock_files import hold_lock, read_holder

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END_SECONDS = 20.0  # for the process that runs the forms, when nothing runs any more
_LOOK_SECONDS = 0.2


def serve_forms(root: Path, host: str, port: int, report_port: int, limit: int) -> None:
    """Serves the forms of the project in `root` until this process is told to end; then ends everything it started.

    The server of PREFECT_API_URL is used if that is set, with the key of PREFECT_API_AUTH_STRING; else one is started
    at `host`:`port` with a key of its own. The folder reports/ is readable at `host`:`report_port`. At most `limit`
    runs at a time; others wait in the UI.

    Raises NoServer, or ParamsError when params.yaml can't be used.
    """
    make_forms(root)
    _end_on_signals()
    given = os.environ.get("PREFECT_API_URL")
    _leave_out_proxies(given)
    lock = prefect_folder(root) / "serving"
    try:
        with (
            hold_lock(lock, f"process {os.getpid()} at {given or f'port {port}'}"),
            _open_reports(root, host, report_port),
            _use_server(given) if given else _open_server(root, host, port),
        ):
            mark_abandoned(root)
            _run_forms(root, f".{make_project_tag(root)}" if given else "", limit)
    except Timeout as error:
        raise NoServer(f"ril serve runs here already: {read_holder(lock)}") from error


def _leave_out_proxies(given: str | None) -> None:
    names = list_unusable_proxies(os.environ)
    if names and given and not is_loopback(given):
        raise NoServer(f"{names[0]} names a SOCKS proxy, which needs a package: pip install socksio; or unset it")
    for name in names:
        print(f"warning: {name} is left out: a SOCKS proxy, which Prefect can't use without socksio", file=sys.stderr)
        del os.environ[name]


@contextmanager
def _use_server(url: str) -> Iterator[None]:
    """The server that the user named."""
    if fault := find_server_fault(url, 5.0):
        raise NoServer(f"{fault}; start it, or unset PREFECT_API_URL for a server of this project")
    print(f"forms: {url.removesuffix('/api')}/deployments", flush=True)
    yield


@contextmanager
def _open_server(root: Path, host: str, port: int) -> Iterator[None]:
    """A server of this project with a key of its own, for this block; a `ril run` that has one gives it up."""
    claim_port(root, host, port)
    with take_server(root, "ril serve"), open_server(root, host, port) as access:
        if not is_loopback(access.url) or format_host(host) != host:
            print(f"warning: {host}:{port} is open to others: key and data go there unencrypted", file=sys.stderr)
        # a file that takes this output may be readable for others
        link = make_link(access.url, access.key) if sys.stdout.isatty() else f"the link in {access_file(root)}"
        print(f"forms: {link}\ndvc in another shell: source {access_file(root)}", flush=True)
        yield


@contextmanager
def _open_reports(root: Path, host: str, port: int) -> Iterator[None]:
    """Pages of the report for this block; their address is in the environment of runs."""
    if port:
        claim_port(root, host, port)
    with serve_reports(root, host, port, format_host(host)) as address:
        os.environ[REPORT] = address
        yield


def _run_forms(root: Path, suffix: str, limit: int) -> None:
    print("Ctrl-C ends everything", flush=True)
    command = [sys.executable, "-m", "flows.ui.forms_runner", "--suffix", suffix, "--limit", str(limit)]
    # A session of its own, because Ctrl-C is for this process alone. It dies with this one; its runs go on.
    runner = subprocess.Popen(
        command,
        cwd=root,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(signal_on_parent_death, signal.SIGKILL),
    )
    try:
        while runner.poll() is None:
            time.sleep(_LOOK_SECONDS)
    finally:
        end_runs(root, runner.pid)
        _end_runner(runner)
    raise NoServer(f"the process that runs the forms ended with {runner.returncode}; see the lines above")


def _end_runner(runner: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGINT, signal.SIGKILL):  # on SIGTERM Prefect's runner prints warnings about itself
        runner.send_signal(number)
        try:
            runner.wait(_END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue


def _end_on_signals() -> None:
    """Makes the first Ctrl-C, SIGTERM or SIGHUP an exception; later ones change nothing, what ends has a time limit."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in _STOPS:
            signal.signal(one, say_so)
        raise SystemExit(0)

    def say_so(number: int, frame: FrameType | None) -> None:
        print("ending already", file=sys.stderr, flush=True)

    for number in _STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, stop)

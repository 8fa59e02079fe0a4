"""`ril serve`: a Prefect server on loopback, a form for each stage in its UI, and a process that runs what they ask
for.
"""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.flow_run import server_answers
from flows.ui.forms import Form, make_forms
from flows.ui.run_locks import list_alive, mark_abandoned
from stages.config.yaml import ParamsError
from stages.engines.supervisor import signal_on_parent_death

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

LOOPBACK = "127.0.0.1"
_START_SECONDS = 180.0  # the first start makes the database: 20 s on a busy machine
_END_SECONDS = 20.0
_END_RUNS_SECONDS = 40.0  # flows/dvc/repro.py kills a stage 25 s after it was told to end
_LOOK_SECONDS = 2.0  # between looks at params.yaml and at the server


class NoServer(RuntimeError):
    """There is no Prefect server and none could be started; the message says why."""


def serve_forms(root: Path, host: str, port: int, report_port: int, limit: int) -> None:
    """Serves the forms of the project in `root` until this process is told to end; then ends everything it started.

    The server of PREFECT_API_URL is used if that is set, else one at `host`:`port`, which is started unless one
    answers. The folder reports/ is readable at `host`:`report_port`. At most `limit` runs at a time; others wait in the
    UI.

    Raises NoServer, or ParamsError when params.yaml can't be used.
    """
    asked = make_forms(root)
    given = os.environ.get("PREFECT_API_URL")
    url = given or f"http://{_format_host(host)}:{port}/api"
    if given and not server_answers(given, 5.0):
        raise NoServer(f"no Prefect server answers at PREFECT_API_URL={given}; start it, or unset the variable")
    os.environ["PREFECT_API_URL"] = url
    with _run_server(root, host, port, url), _serve_reports(root, host, report_port) as report:
        mark_abandoned(root)
        print(
            f"forms: {url.removesuffix('/api')}/deployments   (dvc in a shell: export PREFECT_API_URL={url})",
            flush=True,
        )
        _run_forms(root, asked, report, limit)


def _run_forms(root: Path, asked: list[Form], report: str, limit: int) -> None:
    from prefect import serve as serve_deployments

    print("ready when the list of deployments stands below; Ctrl-C ends everything", flush=True)
    watcher = threading.Thread(target=_follow_params, args=(root, report), daemon=True)
    watcher.start()
    try:
        deployments = [make_deployment(root, form, report) for form in asked]
        serve_deployments(*deployments, make_comparison_deployment(root), limit=limit, pause_on_shutdown=False)
    finally:
        _end_runs(root)


def _end_runs(root: Path) -> None:
    """Cancels what still runs and waits for it, while there is a server to tell."""
    for process in list_alive(root, os.getpid()):
        os.kill(process, signal.SIGTERM)
    end = time.monotonic() + _END_RUNS_SECONDS
    while (left := list_alive(root, os.getpid())) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        print(f"warning: still running after {_END_RUNS_SECONDS:.0f} s: processes {left}", file=sys.stderr)


def make_deployment(root: Path, form: Form, report: str = "") -> "RunnerDeployment":
    """The form as Prefect knows it: a deployment of `flows/ui/trigger.py::start` with the form's fields and values."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType
    from prefect.utilities.callables import ParameterSchema

    from flows.ui.trigger import start

    made = RunnerDeployment.from_flow(
        start.with_options(name=f"run-{form.stage}"),
        name=form.target,
        description=form.title,
        parameters={"root": str(root), "target": form.target, "settings": form.values, "report": report},
        tags=["form"],
        # A second click on the same form waits in the UI until the first run has ended.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.entrypoint = "flows.ui.trigger.start"
    made._parameter_openapi_schema = ParameterSchema.model_validate({"required": [], **form.schema})
    return made


def make_comparison_deployment(root: Path) -> "RunnerDeployment":
    """The form `compare` as Prefect knows it: a deployment of `flows/ui/compare.py::compare_experiments`."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from flows.ui.compare import compare_experiments

    made = RunnerDeployment.from_flow(
        compare_experiments.with_options(name="run-compare"),
        name="compare",
        description="Experiments side by side: what was changed, what came out",
        parameters={"root": str(root)},
        tags=["form"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.entrypoint = "flows.ui.compare.compare_experiments"
    made._parameter_openapi_schema.properties.pop("root", None)
    return made


def _follow_params(root: Path, report: str) -> None:
    """Gives the forms new values whenever params.yaml has changed; a file that can't be used leaves them as they
    are.
    """
    path = root / "params.yaml"
    seen = path.stat().st_mtime_ns
    while True:
        time.sleep(_LOOK_SECONDS)
        now = path.stat().st_mtime_ns if path.is_file() else seen
        if now == seen:
            continue
        seen = now
        try:
            for form in make_forms(root):
                make_deployment(root, form, report).apply()
            print("params.yaml has changed; the forms hold its values", flush=True)
        except ParamsError as error:
            print(f"params.yaml has changed and can't be used; the forms stay as they were: {error}", file=sys.stderr)


# --- what `ril serve` starts and ends -------------------------------------------------------------------------------


@contextmanager
def _run_server(root: Path, host: str, port: int, url: str) -> Iterator[None]:
    """A Prefect server that answers at `url` for this block: the one that is there, or a new one, started again if it
    dies.
    """
    if server_answers(url, 2.0):
        yield
        return
    if host != LOOPBACK:
        print(
            f"warning: everybody who reaches {host}:{port} can start runs here; there is no password", file=sys.stderr
        )
    ending = threading.Event()
    server = _Server(root, host, port)
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
    """The process of a Prefect server, in a session of its own."""

    def __init__(self, root: Path, host: str, port: int) -> None:
        self._command = [sys.executable, "-m", "flows.ui.prefect_server", "--host", host, "--port", str(port)]
        self._log = root / ".ril" / "logs" / "prefect-server.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Starts it; its output goes to .ril/logs/prefect-server.log."""
        waits = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5"}  # Prefect's 30 s leave a queue idle
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env={**waits, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(signal_on_parent_death, signal.SIGTERM),
            )

    def wait(self, url: str) -> None:
        """Until it answers; NoServer when it ends before or takes too long."""
        end = time.monotonic() + _START_SECONDS
        while not server_answers(url, 2.0):
            if self.process.poll() is not None or time.monotonic() > end:
                last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                raise NoServer(f"the Prefect server did not start: {' '.join(last)} ({self._log})")
            time.sleep(0.2)

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


@contextmanager
def _serve_reports(root: Path, host: str, port: int) -> Iterator[str]:
    """Lets browsers read reports/ (a page from http may not open files); yields the address of the report."""
    handler: Any = partial(_Quiet, directory=str(root / "reports"))
    server = http.server.ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{_format_host(host)}:{server.server_port}/report/index.html"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows what the forms do."""


def _format_host(host: str) -> str:
    return LOOPBACK if host == "0.0.0.0" else host

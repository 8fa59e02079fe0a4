"""`ril serve` in a Git project of its own, and what a person would do in its UI, through the same API."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.ui.access import access_file

GUARD = Path(__file__).resolve().parents[2] / ".ci" / "offline"  # no process of `ril serve` reaches another machine
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# The cheapest stage that trains: a judge of 40 thousand weights; checkpoints after every step, so that a cancel finds
# one.
SMALL_JUDGE = {
    "hidden_size": 32,
    "heads": 1,
    "layers": 1,
    "steps": 3,
    "rows_per_step": 2,
    "learning_rate": 2.0e-3,
    "warmup_steps": 1,
    "tokens_per_pack": 512,
}
KEY_NAME, PLANTED_KEY = (
    "SOMEBODYS_API_KEY",
    "sk-planted-0123456789abcdef",
)  # tests/flows/test_secrets.py looks for it everywhere
SMALL = {
    "questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}},
    "models": {"judge": {"build": SMALL_JUDGE}},
    "runtime": {"checkpoint_minutes": 0},
}


class Served:
    """A project with its `ril serve`."""

    def __init__(self, project: Path, home: Path, **variables: str) -> None:
        self.project, self.home, self.given = project, home, variables
        self.attempts = home / "attempts"  # of connections to other machines; all were refused
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts `ril serve` and waits until forms can be filled in."""
        self.log = self.home / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", "--port", str(self.port)],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until(lambda: "being served" in self.log.read_text(), 200, "the forms did not appear")
        key = base64.b64encode(self.key().encode()).decode()
        self.headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
        self.headers |= {
            "Prefect-Csrf-Client": "tests",
            "Prefect-Csrf-Token": self.ask("/csrf-token?client=tests")["token"],
        }

    def key(self) -> str:
        """The key that this start has made."""
        return self.variables()["PREFECT_API_AUTH_STRING"]

    def variables(self) -> dict[str, str]:
        """What a shell gets that sources the file."""
        text = access_file(self.project).read_text()
        return dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines()[1:])

    def environment(self) -> dict[str, str]:
        """For processes of this project: they reach no other machine, and a planted key is there to be found."""
        left_out = (
            "DVC_STAGE",
            "DVC_ROOT",
            "PREFECT_API_URL",
            "PREFECT_API_AUTH_STRING",
            "PREFECT_CLIENT_MAX_RETRIES",
            "PREFECT_API_REQUEST_TIMEOUT",
        )
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        path = f"{self.project}{os.pathsep}{GUARD}"
        environment |= {"PYTHONPATH": path, "PREFECT_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        return environment | {KEY_NAME: PLANTED_KEY, "RIL_OFFLINE_LOG": str(self.attempts)} | self.given

    def until(self, condition: Callable[[], Any], seconds: float, complaint: str) -> Any:
        """Waits for `condition` and returns what it says."""
        end = time.monotonic() + seconds
        while not (answer := condition()):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, f"{complaint} in {seconds:.0f} s\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)
        return answer

    def ask(self, path: str, body: Any = None) -> Any:
        """The server's answer; HTTPError when it refuses."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api{path}", data, self.headers)
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > end:  # 503: its database was busy, nothing was done
                    raise
            time.sleep(0.5)

    def form(self, target: str) -> Any:
        """The deployment of `target`."""
        return self.deployment(f"run-{target.split('@')[0]}/{target}")

    def deployment(self, name: str) -> Any:
        """The deployment called `name`: flow/deployment."""
        return self.ask(f"/deployments/name/{name}")

    def submit(self, target: str, **parameters: Any) -> str:
        """Presses Run in the form of `target` and returns the id of the flow run."""
        return self.started(self.form(target), parameters)

    def started(self, deployment: Any, parameters: dict[str, Any]) -> str:
        """Starts `deployment` and returns the id of the flow run."""
        return str(self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"])

    def refused(self, target: str, **parameters: Any) -> str:
        """What the server says about values that it does not take."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.submit(target, **parameters)
        assert error.value.code == 409
        return str(json.loads(error.value.read())["detail"])

    def run(self, flow_run: str) -> Any:
        """The flow run as it is now."""
        return self.ask(f"/flow_runs/{flow_run}")

    def ended(self, flow_run: str, seconds: float = 150) -> Any:
        """The flow run once it has ended."""

        def final() -> Any:
            run = self.run(flow_run)
            return run if run["state_type"] in FINAL else None

        return self.until(final, seconds, f"flow run {flow_run} did not end")

    def states(self, flow_run: str) -> list[str]:
        """Names of all states the flow run was in."""
        return [state["name"] for state in self.ask(f"/flow_run_states/?flow_run_id={flow_run}")]

    def artifact(self, flow_run: str, key: str) -> Any:
        """Content of the flow run's artifact `key`."""
        found = self.ask(
            "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [key]}}}
        )
        assert found, f"no artifact {key}"
        data = found[0]["data"]
        return json.loads(data) if found[0]["type"] == "table" else data

    def lines(self, flow_run: str) -> str:
        """The flow run's log."""
        found = self.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(entry["message"] for entry in found)

    def stage_runs(self, flow_run: str) -> list[Any]:
        """Flow runs of stages that `flow_run` started."""
        return list(self.ask("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"started-by-{flow_run[:8]}"]}}}))

    def alive(self, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
        """Those that run. What has lost its parent is reaped by process 1, in a container perhaps never."""
        found = []
        for process in processes:
            try:
                found += [process] * (process.status() != psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """Processes of dvc and of stages at work in this project, its experiments included."""
        found = []
        for process in psutil.process_iter(["cwd", "cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or [])
            inside = (process.info["cwd"] or "").startswith(str(self.project))
            if (
                inside
                and process.info["status"] != psutil.STATUS_ZOMBIE
                and ("-m dvc" in words or "flows.run" in words)
            ):
                found.append(process)
        return found

    def everything(self) -> list[psutil.Process]:
        """`ril serve` and all that descends from it."""
        if not psutil.pid_exists(self.process.pid):
            return []
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def listening(self) -> list[Any]:
        """Addresses at which `ril serve`, all that descends from it, dvc and stages listen."""
        found = []
        for process in {*self.everything(), *self.workers()}:
            try:
                found += [one.laddr for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, but: Sequence[psutil.Process] = ()) -> None:
        """SIGKILL to everything that is left, `but` some."""
        for process in {*self.everything(), *self.workers()} - {*but}:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(30)

    def gone(self) -> bool:
        """Whether `ril serve` has ended and its server answers no more."""
        return self.process.poll() is not None and not self.answers() and not self.workers()

    def answers(self) -> bool:
        """Whether something listens at the server's port."""
        with socket.socket() as one:
            one.settimeout(1.0)
            return one.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="session")
def make_served(copy_project: Callable[..., Path]) -> Callable[..., Served]:
    """Starts `ril serve` in a new project with tiny values, committed to Git as experiments need it."""

    def make(folder: Path, **variables: str) -> Served:
        project = copy_project(folder / "project", SMALL)
        root = Path(__file__).resolve().parents[2]
        shutil.copy(root / ".gitignore", project / ".gitignore")
        shutil.copytree(root / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "project"]):
            subprocess.run(["git", *words], cwd=project, check=True, timeout=60)
        return Served(project, folder / "home", **variables)

    return make


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, make_served: Callable[[Path], Served]) -> Iterator[Served]:
    """One `ril serve` for all tests that leave it alive."""
    one = make_served(tmp_path_factory.mktemp("served"))
    yield one
    one.process.send_signal(signal.SIGTERM)
    try:
        one.process.wait(60)
    finally:
        one.kill()
    assert not one.attempts.exists(), one.attempts.read_text()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, copy_project: Callable[..., Path]) -> Path:
    """A project with the results of a run; tests that change results take a copy (`copy_run`)."""
    from tests.flows.tiny_run import OVERLAY, write_tiny_run  # local import: needs torch

    return write_tiny_run(copy_project(tmp_path_factory.mktemp("run") / "project", OVERLAY))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser; the name evil.example leads it to this machine, as a name server of an attacker can."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --window-size=1280,1600"
    rebinding = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    for flag in [*flags.split(), rebinding, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_page_load_timeout(180)
    yield browser
    browser.quit()

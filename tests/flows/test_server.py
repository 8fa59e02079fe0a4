"""A stage under a real Prefect server on loopback: what the UI shows, and that the server can never break the work."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.flow_run import server_answers

pytestmark = pytest.mark.prefect

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
LONGER = {"questions": {"splits": {"warm_start": 4000, "imitation": 4, "validation": 2, "test": 4}}}


@contextmanager
def running_server(home: Path, *module: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A Prefect server with a database of its own, Prefect's or that of `module`: its API address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    started = [*module] or ["prefect", "server", "start", "--no-services"]
    command = [sys.executable, "-m", *started, "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PREFECT_HOME": str(home)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        end = time.monotonic() + 120
        while not server_answers(url, 2.0):
            assert process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < end, "the server did not start in 120 s"
            time.sleep(0.2)
        yield url, process
    finally:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("prefect")) as (url, _):
        yield url


def found(url: str, kind: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/{kind}/filter", data=b"{}", headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        result: list[dict[str, Any]] = json.loads(answer.read())
    return result


def client_settings(home: Path, url: str, stage: str) -> dict[str, str]:
    return {"PREFECT_HOME": str(home), "PREFECT_API_URL": url, "DVC_STAGE": stage}


def test_a_stage_is_a_flow_run_with_progress_table_and_logs(
    make_project: Callable[..., Path], call: Call, server: str, tmp_path: Path
) -> None:
    settings = client_settings(tmp_path / "home", server, "questions")
    code, _, err = call(make_project(), "flows.run", "questions", DVC_EXP_NAME="try-1", **settings)
    assert code == 0, err
    runs = [run for run in found(server, "flow_runs") if "try-1" in run["tags"]]
    assert [(run["name"], run["state_type"]) for run in runs] == [("questions", "COMPLETED")]
    assert set(runs[0]["tags"]) == {"questions", "try-1"}
    artifacts = [artifact for artifact in found(server, "artifacts") if artifact["flow_run_id"] == runs[0]["id"]]
    bars = {artifact["key"]: artifact["data"] for artifact in artifacts if artifact["type"] == "progress"}
    assert bars["drawing-warm-start"] == 100.0
    tables = [json.loads(artifact["data"]) for artifact in artifacts if artifact["type"] == "table"]
    assert [row["split"] for row in tables[0]] == ["warm_start", "imitation", "validation", "test"]
    lines = [log["message"] for log in found(server, "logs") if log["flow_run_id"] == runs[0]["id"]]
    assert any("questions: done in" in line for line in lines)


LOOP = """
from prefect import flow
from flows import display

display._LATEST_SECONDS = 0.0

@flow
def loop():
    progress = display.FlowProgress()
    for count in (1, 2):
        steps = range(1, count + 1)
        rows = [{"step": step, "reward": step / 4, "kl": float("nan")} for step in steps]
        progress.show_latest("ril: latest history", rows)
        progress.show_latest("ril: latest samples", [{"step": step, "response": "<b>4", "answer": 1} for step in steps])

loop()
"""


def test_metrics_and_answers_are_shown_while_a_stage_trains(server: str, root: Path, tmp_path: Path) -> None:
    """Each is one table that changes in place, not one a step."""
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", LOOP], cwd=root, env=environment, check=True, timeout=120)
    tables = {each["key"]: each["data"] for each in found(server, "artifacts") if each["key"].startswith("ril-latest")}
    assert len([each for each in found(server, "artifacts") if each["key"].startswith("ril-latest")]) == 2
    assert json.loads(tables["ril-latest-history"]) == [
        {"": "reward", "step 1": 0.25, "step 2": 0.5},
        {"": "kl", "step 1": "nan", "step 2": "nan"},
    ]
    assert [row["step"] for row in json.loads(tables["ril-latest-samples"])] == [1, 2]


def test_data_that_cannot_be_used_is_a_failed_flow_run_and_exit_code_2(
    make_project: Callable[..., Path], call: Call, server: str, tmp_path: Path
) -> None:
    project = make_project({"questions": {"kind": "llava", "path": "mine.json"}})
    (project / "mine.json").write_text("[]")
    settings = client_settings(tmp_path / "home", server, "questions")
    code, _, err = call(project, "flows.run", "questions", DVC_EXP_NAME="fails", **settings)
    assert code == 2, err
    assert "error: " in err
    states = [run["state_type"] for run in found(server, "flow_runs") if "fails" in run["tags"]]
    assert states == ["FAILED"]


def started(url: str) -> bool:
    return any(run["state_type"] == "RUNNING" for run in found(url, "flow_runs"))


def wait_until_running(process: "subprocess.Popen[str]", url: str) -> None:
    end = time.monotonic() + 90
    while not started(url):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no flow run started in 90 s"
        time.sleep(0.1)


def test_sigterm_ends_a_flow_run_with_143(
    make_project: Callable[..., Path], start: Start, server: str, tmp_path: Path
) -> None:
    project = make_project(LONGER)
    process = start(project, "flows.run", "questions", **client_settings(tmp_path / "home", server, "questions"))
    wait_until_running(process, server)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert not (project / "data" / "questions").exists()


def test_training_under_a_server_ends_with_a_checkpoint(
    make_project: Callable[..., Path], start: Start, server: str, tmp_path: Path
) -> None:
    small = {"hidden_size": 32, "heads": 1, "layers": 1, "rows_per_step": 2}
    project = make_project({"models": {"judge": {"build": small}}, "runtime": {"checkpoint_minutes": 0}})
    store = tmp_path / "store"
    settings = client_settings(tmp_path / "home", server, "model@judge")
    process = start(project, "flows.run", "model", "judge", RIL_STORE=str(store), **settings)
    end = time.monotonic() + 120
    while not list(store.glob("runs/model@judge/*/step_*/DONE")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no checkpoint in 120 s"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "model@judge: stopped after step" in err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_server_that_ends_in_the_middle_does_not_break_the_work(
    make_project: Callable[..., Path], start: Start, tmp_path: Path, end: signal.Signals
) -> None:
    project = make_project(LONGER)
    with running_server(tmp_path / "server") as (url, server):
        process = start(project, "flows.run", "questions", **client_settings(tmp_path / "home", url, "questions"))
        wait_until_running(process, url)
        os.killpg(server.pid, end)
        marker = project / "reports" / "questions" / "timing.json"
        limit = time.monotonic() + 180
        while not marker.exists():  # written when the work is done
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit, "the work did not end"
            time.sleep(0.1)
        done = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "warning: " in err
    assert "Prefect" in err
    assert time.monotonic() - done < 30
    assert "questions: done in" in err

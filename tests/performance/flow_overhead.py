"""What the Prefect UI costs: `python tests/performance/flow_overhead.py [--rounds 3]`. Three minutes on one core.

The same stage alone and as a flow run of a server that is up, in turn, each a process of its own; and the time from a
click in a form to the stage's first log line. The bar of the first is 6 s.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.environment import prepare

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0
STAGE = [sys.executable, "-m", "flows.run", "questions"]


def project_in(folder: Path) -> Path:
    """A copy of what a run needs, without data."""
    for part in ("stages", "flows", "studies", "profiles", ".dvc"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def until(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` says as soon as it is true; TimeoutError after LIMIT."""
    end = time.monotonic() + LIMIT
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come in {LIMIT:.0f} s")
        time.sleep(0.1)
    return answer


def ask(url: str, path: str, body: Any = None) -> Any:
    """The server's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def stage_seconds(project: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process of the stage."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(STAGE, cwd=project, env=environment, check=True, capture_output=True, timeout=LIMIT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def overhead(project: Path, environment: dict[str, str], url: str, rounds: int) -> None:
    """Prints medians of the stage alone, under the server, and the difference."""
    alone, under = [], []
    for _ in range(rounds):
        alone.append(stage_seconds(project, environment))
        under.append(stage_seconds(project, {**environment, "PREFECT_API_URL": f"{url}/api"}))
    for place, name in enumerate(("wall", "CPU")):
        one, two = (statistics.median(pair[place] for pair in found) for found in (alone, under))
        extra = [with_flow[place] - without[place] for without, with_flow in zip(alone, under, strict=True)]
        print(
            f"{name:4} seconds: alone {one:.1f}, as a flow run {two:.1f}, overhead "
            f"{statistics.median(extra):.1f} (each: ",
            end="",
        )
        print(", ".join(f"{value:.1f}" for value in extra) + ")")


def click(url: str) -> None:
    """Prints how long after the click the form's run, dvc and the stage said their first word."""
    form = ask(url, "/deployments/name/run-questions/questions")["id"]
    clicked = time.time()
    run = ask(url, f"/deployments/{form}/create_flow_run", {"parameters": {"force": True}})["id"]

    def first(flow_run: str, words: str = "") -> float | None:
        asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        lines = [line for line in ask(url, "/logs/filter", asked) if words in line["message"]]
        return datetime.fromisoformat(lines[0]["timestamp"]).timestamp() - clicked if lines else None

    def stage() -> str | None:
        found = ask(url, "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"started-by-{run[:8]}"]}}})
        return found[0]["id"] if found else None

    own = until(lambda: first(run), "a line of the form's run")
    dvc = until(lambda: first(run, "Running stage"), "dvc's line")
    line = until(lambda: (found := stage()) and first(found), "the stage's line")
    print(f"click: form's run {own:.1f} s, dvc starts the stage {dvc:.1f} s, first log line of the stage {line:.1f} s")
    until(lambda: ask(url, f"/flow_runs/{run}")["state_type"] == "COMPLETED", "the end")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the Prefect UI costs.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    prepare()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        project = project_in(Path(folder) / "project")
        environment = {**os.environ, "PYTHONPATH": str(project), "PREFECT_HOME": str(Path(folder) / "home")}
        environment.pop("PREFECT_API_URL", None)
        patient = {
            key: value for key, value in environment.items() if not key.startswith("PREFECT_") or key == "PREFECT_HOME"
        }
        command = [sys.executable, "-u", "-m", "flows.cli", "serve", "--port", str(port)]
        log = Path(folder) / "serve.log"
        with log.open("wb") as written:
            served = subprocess.Popen(command, cwd=project, env=patient, stdout=written, stderr=written)
        try:
            until(lambda: "being served" in log.read_text(), "ril serve")
            url = f"http://127.0.0.1:{port}"
            overhead(project, environment, url, rounds)
            for _ in range(rounds):
                click(url)
        finally:
            served.send_signal(signal.SIGTERM)
            served.wait(90)


if __name__ == "__main__":
    main()

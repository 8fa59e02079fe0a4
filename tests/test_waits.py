"""Nothing waits for ever: every call that can block has a limit, or stands here with what ends it.

The table in docs/reliability.md says how long each wait lasts and what happens then.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("flows", "stages", "studies")
WAITS = ("wait", "join", "result", "get", "communicate", "acquire", "accept")  # methods that may block
PROCESSES = ("run", "call", "check_call", "check_output")  # of subprocess
CLIENTS = ("get", "post", "stream", "request", "Client", "AsyncClient")  # of httpx and requests
LIMITED = ("timeout", "blocking", "limit")
# What ends a wait that has no limit of its own, by file and function.
ENDED_BY = {
    "flows/dvc/locks.py::hold_experiment_lock": "ExperimentLock.acquire never blocks; the loop around it ends",
    "flows/dvc/repro.py::run_experiments": "ExperimentLock.acquire never blocks; limit_hours ends the loop",
    "flows/flow_run.py::_leave_without_prefect": "waits for the work itself, in a thread that holds no process",
    "flows/rank_processes.py::join_ranks": "the rendezvous of torch has a limit, and `others.wait` ends after a minute",
    "flows/rank_processes.py::RankProcesses.end": "the processes got SIGKILL; their parent's end takes them along",
    "stages/engines/calls.py::Caller._work.worker": "asyncio.timeout of the whole stream (deadline)",
    "stages/engines/server.py::Server.stop": "the keeper and all below it got SIGKILL",
    "stages/engines/supervisor.py::end_all": "the keeper waits for a server that got SIGKILL; no stage waits for it",
    "stages/engines/vllm.py::VllmEngine._admit": "WorkLimit of runtime.stuck_minutes around it",
    "stages/reward_functions/functions.py::RewardFunctions.__init__": "LOAD_SECONDS a function, in WorkerProcess",
    "stages/reward_functions/functions.py::RewardFunctions.collect": "`seconds` of each call, in WorkerProcess",
    "stages/reward_functions/functions.py::RewardFunctions._call": "as many processes as threads; calls have limits",
    "stages/reward_functions/process.py::WorkerProcess.close": "the process got SIGKILL",
    "stages/reward_functions/process.py::WorkerProcess._await_reply": "the socket does not block",
    "stages/reward_functions/worker.py::_read_exactly": "a worker waits for work; it dies with the stage's process",
    "stages/reward_functions/worker.py::refuse_children": "WNOHANG",
    "stages/trackers/trackers.py::_TrackerThread._work": "a thread that holds no process; `close` waits with a limit",
    "stages/training/ranks.py::free_cached_memory": "a collective of the process group, which has a limit",
    "stages/training/ahead.py::preparing_ahead.take": "a thread that reads and computes, as the step would itself",
    "stages/training/engine_config.py::start_quietly": "a collective of the process group, which has a limit",
}


def iter_unlimited(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """Function, line and text of each call that may block without a limit."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.Call) and is_unlimited(child):
                yield inner, child.lineno, ast.unparse(child)[:80]
            yield from walk(child, inner)

    yield from walk(tree, "")


def is_unlimited(call: ast.Call) -> bool:
    """Whether the call can block and nothing in it says for how long."""
    if any(keyword.arg is None or keyword.arg in LIMITED for keyword in call.keywords):
        return False
    text = ast.unparse(call.func)
    owner, _, method = text.rpartition(".")
    if owner == "subprocess":
        return method in PROCESSES
    if owner in ("httpx", "requests"):
        return method in CLIENTS
    if method in ("urlopen", "create_connection", "init_process_group", "monitored_barrier"):
        return True
    if method in ("flock", "lockf"):
        return "LOCK_NB" not in ast.unparse(call)
    if method in ("recv", "recv_bytes", "waitpid"):
        return True
    if text == "select.select":
        return len(call.args) < 4
    return bool(owner) and method in WAITS and not call.args


def list_unlimited(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            for function, line, text in iter_unlimited(ast.parse(file.read_text())):
                found.setdefault(f"{file.relative_to(root)}::{function}", []).append(f"line {line}: {text}")
    return found


def test_every_wait_has_a_limit_or_a_reason(root: Path) -> None:
    found = list_unlimited(root)
    new = [f"{name}, {line}" for name, lines in found.items() if name not in ENDED_BY for line in lines]
    assert not new, "give a limit, or say here what ends it:\n" + "\n".join(new)
    assert not ENDED_BY.keys() - found.keys(), "waits that are gone"


@pytest.mark.parametrize(
    ("text", "unlimited"),
    [
        ("thread.join()", True),
        ("thread.join(5.0)", False),
        ("', '.join(names)", False),
        ("process.wait(timeout=3)", False),
        ("queue.get()", True),
        ("names.get(key)", False),
        ("subprocess.run(words)", True),
        ("subprocess.run(words, timeout=3)", False),
        ("httpx.get(url)", True),
        ("httpx.Client(**options)", False),
        ("urllib.request.urlopen(url)", True),
        ("fcntl.flock(file, fcntl.LOCK_EX)", True),
        ("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", False),
        ("lock.acquire()", True),
        ("lock.acquire(blocking=False)", False),
        ("select.select(a, b, c)", True),
        ("select.select(a, b, c, 1.0)", False),
        ("future.result()", True),
    ],
)
def test_calls_are_told_apart(text: str, unlimited: bool) -> None:
    assert bool(list(iter_unlimited(ast.parse(text)))) == unlimited

"""Every `ril run` is a flow run: what the Prefect UI shows of it, whatever ends the run or its server."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.repo import Repo

from flows import run_journal
from flows.run_journal import RUN, JournalProgress, open_journal
from stages.config.yaml import read_yaml
from tests.flows.conftest import SMALL_JUDGE
from tests.flows.test_server import running_server

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
MANY_QUESTIONS = {"questions": {"splits": {"warm_start": 30000, "imitation": 4, "validation": 2, "test": 4}}}
SOME_QUESTIONS = {"questions": {"splits": {"warm_start": 6000, "imitation": 4, "validation": 2, "test": 4}}}
served = [pytest.mark.prefect, pytest.mark.slow]


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- journals --------------------------------------------------------------------------------------------------------


def test_a_loop_that_runs_in_no_other_is_a_part(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    with open_journal(path, stage="ril", name="ril") as journal:
        progress = JournalProgress(journal)
        for _ in progress.track(range(2), "steps"):
            list(progress.track(range(3), "sampling"))
        with pytest.raises(ZeroDivisionError):
            list(progress.track((1 / count for count in (1, 0)), "broken"))
        progress.show_latest("history", [{"step": 1, "kl": float("nan")}])
        progress.show_latest("history", [{"step": 2, "kl": 0.5}])
    events = read_events(path)
    assert events[0]["event"] == "start"
    assert [(one["event"], one["title"]) for one in events if one["event"].startswith("part")] == [
        ("part", "steps"),
        ("part-end", "steps"),
        ("part", "broken"),
        ("part-end", "broken"),
    ]
    assert [one["ok"] for one in events if one["event"] == "part-end"] == [True, False]
    assert [one["percent"] for one in events if one["event"] == "bar" and one["title"] == "steps"] == [50.0, 100.0]
    assert [one["rows"] for one in events if one["event"] == "latest"] == [[{"": "kl", "step 1": "nan"}]]
    assert not run_journal.has_ended(tmp_path / "none.jsonl") or not (tmp_path / "none.jsonl").exists()
    assert run_journal.has_ended(path)


def test_a_full_disk_ends_the_journal_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with open_journal(tmp_path / "1.jsonl", stage="ril", name="ril") as journal:
        monkeypatch.setattr("flows.run_journal.os.write", refuse)
        assert list(JournalProgress(journal).track(range(3), "steps")) == [0, 1, 2]
        monkeypatch.undo()
    assert capsys.readouterr().err.count("the Prefect UI will not show all of this stage") == 1


# --- told to a server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("prefect")) as (url, _):
        yield url


class Reader:
    """What a server has."""

    def __init__(self, url: str, key: str | None = None) -> None:
        from prefect.client.orchestration import SyncPrefectClient

        self.client = SyncPrefectClient(url, auth_string=key)

    def runs(self, tag: str = "") -> dict[str, Any]:
        """Flow runs by name."""
        return {run.name: run for run in self.client.read_flow_runs() if not tag or tag in run.tags}

    def tasks(self, run: Any) -> dict[str, Any]:
        """Task runs of a flow run by name."""
        return {one.name: one for one in self.client.read_task_runs() if one.flow_run_id == run.id}

    def filter(self, kind: str) -> list[dict[str, Any]]:
        answer = self.client._client.post(f"/{kind}/filter", json={})
        return list(answer.json())

    def lines(self, run: Any) -> list[str]:
        return [log["message"] for log in self.filter("logs") if log["flow_run_id"] == str(run.id)]


def write_journal(path: Path, *events: dict[str, Any]) -> None:
    begun = 1_800_000_000.0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for event in events:
            file.write(json.dumps({"time": begun + event.pop("at", 0.0), **event}) + "\n")


@pytest.mark.prefect
def test_journals_are_flow_runs_also_when_another_process_goes_on(server: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.ui.flow_records import RunRecords

    folder, tag = tmp_path / "journals" / "1", "run-mine"
    stage = folder / "2.jsonl"
    about = {"event": "start", "item": None, "tags": [tag, "commit-1"]}
    write_journal(folder / RUN, {**about, "stage": "", "name": "ril run"})
    write_journal(
        stage,
        {**about, "stage": "model", "item": "judge", "name": "model@judge"},
        {"event": "line", "text": "one", "at": 1.0},
        {"event": "part", "title": "training", "at": 1.0},
        {"event": "bar", "title": "training", "percent": 10.0, "at": 1.0},
        {"event": "part", "title": "short", "at": 1.0},
        {"event": "part-end", "title": "short", "ok": True, "at": 2.0},
        {"event": "bar", "title": "training", "percent": 40.0, "at": 9.0},
        {"event": "latest", "title": "history", "rows": [{"": "kl", "step 1": 1}], "at": 9.0},
    )
    seen = Reader(server)
    with open_journal_lock(folder / RUN), open_journal_lock(stage):
        assert not RunRecords(SyncPrefectClient(server), folder).tell()
        runs = seen.runs(tag)
        assert {name: run.state_type.value for name, run in runs.items()} == {
            "ril run": "RUNNING",
            "model@judge": "RUNNING",
        }
        parts = seen.tasks(runs["model@judge"])
        assert set(parts) == {"training"}, "a loop of a second is a line in the log"
        write_journal(
            stage,
            {"event": "bar", "title": "training", "percent": 100.0, "at": 20.0},
            {"event": "part-end", "title": "training", "ok": True, "at": 20.0},
            {"event": "line", "text": "two", "at": 21.0},
            {"event": "end", "state": "completed", "text": "", "at": 21.0},
        )
        write_journal(folder / RUN, {"event": "end", "state": "stopped", "text": "exit code 130", "at": 22.0})
        other = RunRecords(SyncPrefectClient(server), folder)
        assert other.tell()
        assert other.tell()
    runs = seen.runs(tag)
    assert {name: run.state_type.value for name, run in runs.items()} == {
        "ril run": "CANCELLED",
        "model@judge": "COMPLETED",
    }
    assert runs["ril run"].state.message == "exit code 130; 22.0 s from 2027-01-15 08:00:00 UTC"
    placeholder = seen.tasks(runs["ril run"])["model@judge"]
    assert runs["model@judge"].parent_task_run_id == placeholder.id
    assert placeholder.state_type.value == "COMPLETED"
    assert seen.tasks(runs["model@judge"])["training"].state_type.value == "COMPLETED"
    assert runs["model@judge"].parameters == {"item": "judge"}
    assert seen.lines(runs["model@judge"]) == ["one", "two"]
    bars = [one for one in seen.filter("artifacts") if one["flow_run_id"] == str(runs["model@judge"].id)]
    assert sorted((one["key"], one["type"]) for one in bars) == [("history", "table"), ("training", "progress")]
    assert [one["data"] for one in bars if one["type"] == "progress"] == [100.0]


@pytest.mark.prefect
def test_a_killed_stage_is_crashed_and_another_database_gets_all_anew(server: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.ui.flow_records import RunRecords

    folder, tag = tmp_path / "journals" / "1", "run-other"
    about = {"event": "start", "item": None, "tags": [tag]}
    write_journal(folder / RUN, {**about, "stage": "", "name": "ril run"})
    write_journal(
        folder / "2.jsonl",
        {**about, "stage": "pool", "name": "pool"},
        {"event": "part", "title": "long", "at": 1.0},
        {"event": "line", "text": "x", "at": 5.0},
    )
    (folder / "2.jsonl").open("a").write('{"event": "li')  # cut off by the kill
    assert RunRecords(SyncPrefectClient(server), folder).tell()
    seen = Reader(server)
    assert {name: run.state_type.value for name, run in seen.runs(tag).items()} == {
        "ril run": "CRASHED",
        "pool": "CRASHED",
    }
    assert seen.tasks(seen.runs(tag)["pool"])["long"].state_type.value == "FAILED"
    for kept in folder.glob("*.json"):
        state = json.loads(kept.read_text())
        state |= {"flow_run": "00000000-0000-4000-8000-000000000000", "ended": False}
        kept.write_text(json.dumps(state))
    for run in seen.runs(tag).values():
        seen.client.delete_flow_run(run.id)
    records = RunRecords(SyncPrefectClient(server), folder)
    assert not records.tell()
    assert records.tell()
    assert set(seen.runs(tag)) == {"ril run", "pool"}


@contextmanager
def open_journal_lock(path: Path) -> Iterator[None]:
    from stages.job.lock_files import hold_lock

    with hold_lock(path.with_suffix(run_journal.LOCK), "1"):
        yield


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_repo(make_project: Callable[..., Path]) -> Callable[..., Path]:
    def make(*arguments: object) -> Path:
        project = make_project(*arguments)
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "project"]):
            subprocess.run(["git", *words], cwd=project, check=True, timeout=60)
        Repo.init(str(project)).close()
        return project

    return make


def list_processes(folder: Path, word: str = "") -> list[psutil.Process]:
    """Processes at work in `folder` whose command has `word`."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE and word in words:
            found.append(process)
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not in {seconds:.0f} s"
        time.sleep(0.2)
    return answer


@contextmanager
def reading(project: Path) -> Iterator[Reader]:
    """A server on the project's database, as a later `ril serve` has it."""
    with running_server(project / ".ril" / "prefect") as (url, _):
        yield Reader(url)


@pytest.mark.prefect
@pytest.mark.slow
def test_a_run_is_a_flow_run_and_leaves_no_process(make_repo: Callable[..., Path], call: Call) -> None:
    project = make_repo(SOME_QUESTIONS)
    code, out, err = call(project, "flows.cli", "run", "questions")
    assert code == 0, out + err
    assert "Prefect UI of this run: http://127.0.0.1:" in err
    assert "#" not in err, "what is no terminal gets no key"
    assert not list_processes(project)
    assert not list((project / ".ril" / "prefect" / "journals").iterdir()), "all was told"
    assert not (project / ".ril" / "prefect" / "environment").exists()
    code, out, err = call(project, "flows.cli", "run", "questions")
    assert (code, "Prefect" in err) == (0, False), "nothing ran, so that no server is started"
    with reading(project) as seen:
        runs = seen.runs()
        assert {name: run.state_type.value for name, run in runs.items()} == {
            "ril run questions": "COMPLETED",
            "questions": "COMPLETED",
        }
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=project, capture_output=True, text=True, timeout=60
        )
        assert {f"commit-{commit.stdout.strip()}", "questions"} <= set(runs["questions"].tags)
        assert any("questions: done in" in line for line in seen.lines(runs["questions"]))
        (table,) = [one for one in seen.filter("artifacts") if one["type"] == "table"]
        assert table["flow_run_id"] == str(runs["questions"].id)
    assert list(read_yaml(project / "dvc.lock")["stages"]) == ["questions"], "one name in DVC and in Prefect"


@pytest.mark.prefect
@pytest.mark.slow
def test_no_server_leaves_no_trace(make_repo: Callable[..., Path], call: Call) -> None:
    project = make_repo()
    code, _, err = call(project, "flows.cli", "run", "questions", "--no-server")
    assert (code, "Prefect" in err) == (0, False)
    assert not (project / ".ril" / "prefect").exists()


@pytest.mark.prefect
@pytest.mark.slow
def test_a_server_that_does_not_start_is_a_warning_and_the_next_run_tells_it(
    make_repo: Callable[..., Path], call: Call
) -> None:
    project = make_repo()
    broken = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/no/such/folder.db"}
    code, _, err = call(project, "flows.cli", "run", "questions", **broken)
    assert code == 0, err
    assert err.count("warning: the Prefect UI does not show") == 1, err
    assert "questions" in read_yaml(project / "dvc.lock")["stages"]
    assert len(list((project / ".ril" / "prefect" / "journals").iterdir())) == 1
    code, _, err = call(project, "flows.cli", "run", "--force", "--only", "questions")
    assert code == 0, err
    assert not list((project / ".ril" / "prefect" / "journals").iterdir())
    with reading(project) as seen:
        names = [run.name for run in seen.client.read_flow_runs()]
        assert sorted(names) == ["questions", "questions", "ril run questions", "ril run questions"]


@pytest.mark.prefect
@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["SIGTERM", "Ctrl-C", "SIGKILL"]
)
def test_the_server_ends_with_the_run(make_repo: Callable[..., Path], start: Start, number: signal.Signals) -> None:
    project = make_repo(MANY_QUESTIONS)
    process = start(project, "flows.cli", "run", "questions")
    (file,) = wait_for(lambda: list((project / ".ril" / "prefect").glob("environment")))
    url = file.read_text().split("PREFECT_API_URL=")[1].split()[0]
    wait_for(lambda: answers_without_key(url))
    (stage,) = list_processes(project, "flows.run questions")
    process.send_signal(number)
    process.communicate(timeout=60)
    if number == signal.SIGKILL:  # dvc and the stage are in a session of their own and go on
        wait_for(lambda: not list_processes(project, "flows.ui"), 20)
        assert stage.is_running()
        os.killpg(os.getpgid(stage.pid), signal.SIGTERM)
        wait_for(lambda: not list_processes(project), 30)
    else:
        assert process.returncode == 128 + number
        assert not list_processes(project)
        with reading(project) as seen:
            assert {run.state_type.value for run in seen.runs().values()} == {"CANCELLED"}


def answers_without_key(url: str) -> bool:
    """Whether something listens at `url`; the key is not asked for."""
    host, _, port = url.removeprefix("http://").removesuffix("/api").partition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


@pytest.mark.prefect
@pytest.mark.slow
def test_two_runs_at_once_share_one_server(make_repo: Callable[..., Path], start: Start) -> None:
    project = make_repo({**SOME_QUESTIONS, "models": {"judge": {"build": SMALL_JUDGE}}})
    first = start(project, "flows.cli", "run", "--only", "questions")
    second = start(project, "flows.cli", "run", "--only", "model@judge")
    most = 0
    while first.poll() is None or second.poll() is None:
        most = max(most, len(list_processes(project, "-m flows.ui.prefect_server")))
        time.sleep(0.2)
    told = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    assert most == 1
    assert not list_processes(project)
    journals = project / ".ril" / "prefect" / "journals"
    assert not list(journals.iterdir())
    with reading(project) as seen:
        assert {name: run.state_type.value for name, run in seen.runs().items()} == dict.fromkeys(
            ["ril run questions", "ril run model@judge", "questions", "model@judge"], "COMPLETED"
        )


@pytest.mark.prefect
@pytest.mark.slow
def test_ril_serve_takes_over_and_the_run_uses_it(
    tmp_path_factory: pytest.TempPathFactory, make_served: Callable[..., Any], start: Start
) -> None:
    served = make_served(tmp_path_factory.mktemp("over"), PREFECT_HOME="")
    params = served.project / "params.yaml"
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(60)
    params.write_text(params.read_text().replace("warm_start: 8", "warm_start: 60000"))
    process = start(served.project, "flows.cli", "run", "--only", "questions")
    try:
        wait_for(lambda: list_processes(served.project, "-m flows.ui.prefect_server"))
        wait_for(lambda: "Prefect" in (served.project / ".ril" / "prefect" / "server").read_text() or True)
        served.start()
        (found,) = served.until(lambda: find_running(served, "questions"), 60, "the run is not on the new server")
        assert found["state_type"] == "RUNNING"
        assert len(list_processes(served.project, "-m flows.ui.prefect_server")) == 1
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        served.until(lambda: served.run(found["id"])["state_type"] == "CANCELLED", 30, "its end was not told")
    finally:
        process.kill()
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(60)
        served.kill()


def find_running(served: Any, name: str) -> list[Any]:
    return [
        run
        for run in served.ask("/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
        if run["state_type"] == "RUNNING"
    ]

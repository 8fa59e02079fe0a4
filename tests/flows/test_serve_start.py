"""What keeps `ril serve` from starting is one line: who has the port, that it runs already, what answers instead."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.flow_run import find_server_fault
from flows.loopback import bypass_proxies, is_loopback, list_unusable_proxies
from flows.ui.access import grant_access, prefect_folder, revoke_access
from flows.ui.forms import make_forms
from flows.ui.forms_runner import make_deployment, make_project_tag
from flows.ui.plan import check_project
from flows.ui.ports import find_holder
from flows.ui.prefect_server import list_host_names
from stages.config.yaml import ParamsError
from stages.job.lock_files import hold_lock

Call = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def answering(code: int, body: str, **headers: str) -> Iterator[tuple[int, list[Any]]]:
    """A server that says the same to everything: its port, and the headers of each request."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers)
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        server.server_close()


# --- who answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body", "fault"),
    [
        (200, '"3.7.7"', None),
        (200, "<html>a web app</html>", "no Prefect server answers at {url}"),
        (200, "{}", "no Prefect server answers at {url}"),
        (200, "true", "no Prefect server answers at {url}"),
        (200, '"' + 2000 * "x" + '"', "no Prefect server answers at {url}"),
        (200, "", "no Prefect server answers at {url}"),
        (404, "", "no Prefect server answers at {url}, but something that says 404"),
        (302, "", "no Prefect server answers at {url}, but something that says 302"),
        (401, "", "the Prefect server at {url} refuses the key; PREFECT_API_AUTH_STRING has to hold it"),
    ],
)
def test_only_a_prefect_server_that_takes_the_key_is_one(code: int, body: str, fault: str | None) -> None:
    with answering(code, body, Location="http://127.0.0.1:1/elsewhere") as (port, _):
        url = f"http://127.0.0.1:{port}/api"
        found = find_server_fault(url, 5.0)
    assert found == (fault and fault.format(url=url))


def test_a_stage_whose_key_is_refused_does_its_work(make_project: Callable[..., Path], call: Call) -> None:
    with answering(401, "") as (port, _):
        url = f"http://127.0.0.1:{port}/api"
        code, _, err = call(make_project(), "flows.run", "questions", PREFECT_API_URL=url, DVC_STAGE="questions")
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("warning")] == [
        f"warning: the Prefect server at {url} refuses the key; PREFECT_API_AUTH_STRING has to hold it; running "
        "without it"
    ]


def test_loopback_is_asked_without_a_proxy_and_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, '"3.7.7"') as (port, seen), answering(503, "") as (proxy, asked):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ril:known")
        assert find_server_fault(f"http://127.0.0.1:{port}/api", 5.0) is None
        assert find_server_fault(f"http://localhost:{port}/api", 5.0) is None
    assert [one["Authorization"] for one in seen] == ["Basic cmlsOmtub3du"] * 2
    assert asked == []


@pytest.mark.parametrize(
    ("environ", "added"),
    [
        ({}, {}),
        ({"no_proxy": "x"}, {}),
        ({"http_proxy": "p"}, "127.0.0.1,localhost,::1"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "a.b, localhost"}, "a.b,localhost,127.0.0.1,::1"),
        ({"ALL_PROXY": "p", "no_proxy": "c", "NO_PROXY": "a.b"}, "c,127.0.0.1,localhost,::1"),
        ({"http_proxy": "p", "NO_PROXY": "*"}, {}),
    ],
)
def test_proxies_are_told_to_leave_out_loopback(environ: dict[str, str], added: Any) -> None:
    assert bypass_proxies(environ) == (
        added or {} if isinstance(added, dict) else {"no_proxy": added, "NO_PROXY": added}
    )


def test_socks_proxies_that_httpx_can_not_use_are_known() -> None:
    given = {"ALL_PROXY": "socks5://x:1", "https_proxy": "SOCKS5H://x:1", "http_proxy": "http://x:1"}
    assert sorted(list_unusable_proxies(given)) == ["ALL_PROXY", "https_proxy"]
    assert is_loopback("http://localhost:4200/api")
    assert is_loopback("http://[::1]:4200/api")
    assert not is_loopback("http://127.0.0.1.evil.example/api")


# --- key and names ---------------------------------------------------------------------------------------------------


def test_each_start_makes_a_key_except_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    url = "http://127.0.0.1:4200/api"
    first = grant_access(tmp_path, url)
    path = tmp_path / ".ril" / "prefect" / "environment"
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.home == path.parent
    assert path.parent.stat().st_mode & 0o777 == 0o700
    told = subprocess.run(["sh", "-c", f". '{path}'; env"], capture_output=True, text=True, check=True, env={})
    assert set(first.describe_client().items()) <= {tuple(line.split("=", 1)) for line in told.stdout.splitlines()}
    assert grant_access(tmp_path, url).key == first.key, "a killed `ril serve` has left it to its runs"
    path.chmod(0o644)
    second = grant_access(tmp_path, url)
    assert second.key != first.key, "others could have read it"
    path.write_text("export PREFECT_API_AUTH_STRING=ril:short\n")
    path.chmod(0o600)
    assert grant_access(tmp_path, url).key not in (first.key, second.key, "ril:short")
    revoke_access(tmp_path)
    assert not path.exists()


def test_hosts_are_those_of_this_machine() -> None:
    assert list_host_names("127.0.0.1") == ["127.0.0.1", "localhost", "::1", "127.0.0.1"]
    everywhere = list_host_names("0.0.0.0")
    assert socket.gethostname().lower() in everywhere
    assert "*" not in everywhere


def test_two_checkouts_have_tags_of_their_own(tmp_path: Path) -> None:
    tags = [make_project_tag(tmp_path / name) for name in ("a/ril", "b/ril", "c/my project/ü")]
    assert len(set(tags)) == 3
    assert all(tag.isascii() and " " not in tag and "/" not in tag for tag in tags)


def test_forms_of_two_checkouts_on_one_server_have_names_of_their_own(root: Path, tmp_path: Path) -> None:
    """On a server that is not the project's own, as `flows/ui/serve.py` names them."""
    form = make_forms(root)[0]
    made = [make_deployment(place, form, f".{make_project_tag(place)}") for place in (root, tmp_path)]
    assert made[0].name != made[1].name
    assert [one.parameters["root"] for one in made] == [str(root), str(tmp_path)]
    with pytest.raises(ParamsError, match="was made for the project in"):
        check_project(str(tmp_path))


# --- ports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A program that listens and says nothing; its first line is the port."""
    listens = "import socket\none = socket.socket(); one.bind(('127.0.0.1', 0)); one.listen()\n"
    program = f"{listens}print(one.getsockname()[1], flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait(30)


def test_the_holder_of_a_port_is_named(silent: Any, tmp_path: Path) -> None:
    port = int(silent.stdout.readline())
    begin = time.monotonic()
    holder = find_holder("127.0.0.1", port)
    assert time.monotonic() - begin < 2
    assert holder is not None
    assert (holder.pid, holder.folder) == (silent.pid, str(tmp_path))
    assert "\n" not in str(holder)
    assert str(holder).startswith(f"process {silent.pid} (")
    silent.kill()
    silent.wait(30)
    assert find_holder("127.0.0.1", port) is None


def test_a_taken_port_is_one_line(make_project: Callable[..., Path], call: Call, silent: Any) -> None:
    project, port = make_project(), silent.stdout.readline().strip()
    for option in ("--port", "--report-port"):
        code, out, err = call(project, "flows.cli", "serve", option, port)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: port {port} is taken by process {silent.pid} (")
        assert err.count("\n") == 1
    with answering(200, "<html>a web app</html>") as (web, _):
        code, _, err = call(project, "flows.cli", "serve", "--port", str(web))
        assert (code, err.count("\n")) == (2, 1)
        assert f"error: port {web} is taken by process {os.getpid()} (" in err
        url = f"http://127.0.0.1:{web}/api"
        code, _, err = call(project, "flows.cli", "serve", PREFECT_API_URL=url)
        assert (code, err) == (
            2,
            f"error: no Prefect server answers at {url}; start it, or unset PREFECT_API_URL for a server of this "
            "project\n",
        )


def test_a_second_start_in_one_project_is_one_line(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    with hold_lock(prefect_folder(project) / "serving", "process 12 at port 4200"):
        code, _, err = call(project, "flows.cli", "serve", "--port", "1")
    assert (code, err) == (2, "error: ril serve runs here already: process 12 at port 4200\n")


def test_a_folder_that_can_not_be_made_is_one_line(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    (project / ".ril").mkdir()
    (project / ".ril" / "prefect").write_text("a file")
    code, _, err = call(project, "flows.cli", "serve", "--port", "1")
    place = project / ".ril" / "prefect"
    assert (code, err) == (2, f"error: {place} has to be a folder that only you can write: File exists\n")


@pytest.mark.prefect
@pytest.mark.slow
def test_a_server_that_fails_is_explained_by_its_own_lines(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    log = project / ".ril" / "logs" / "prefect-server.log"
    log.parent.mkdir(parents=True)
    log.write_text("a line of another day\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    broken = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/no/such/folder.db"}
    code, _, err = call(project, "flows.cli", "serve", "--port", port, **broken)
    assert code == 2, err
    assert err.startswith("error: the Prefect server did not start: ")
    assert err.count("\n") == 1
    assert "another day" not in err + log.read_text()

"""What a page of another origin, a name that leads to 127.0.0.1, or a process without the key can do to `ril serve`:
nothing. And what a deployment that somebody has changed with the key can't do.
"""

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.flow_run import find_server_fault

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

EVIL = {"Origin": "http://evil.example", "Content-Type": "application/json"}
JSON = {"Content-Type": "application/json"}


def shell(marker: Path) -> list[dict[str, Any]]:
    """A pull step that runs a command."""
    return [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}]


def requests(form: Any, marker: Path) -> list[tuple[str, str, Any]]:
    """Method, path and body: what runs something, changes what is run, or tells about it."""
    one, flow = form["id"], form["flow_id"]
    smuggled = {"runtime": {"engines": {"judge": {"kind": "vllm_server", "args": ["--trust-remote-code"]}}}}
    upsert = {"name": form["name"], "flow_id": flow, "pull_steps": shell(marker), "enforce_parameter_schema": False}
    action = {"type": "run-deployment", "source": "selected", "deployment_id": one}
    trigger = {"type": "event", "posture": "Reactive", "expect": ["*"], "threshold": 1, "within": 0}
    return [
        ("POST", "/deployments/filter", {"limit": 200}),
        ("GET", f"/deployments/{one}", None),
        ("GET", f"/deployments/name/{form['name']}/{form['name']}", None),
        ("PATCH", f"/deployments/{one}", {"pull_steps": shell(marker)}),
        ("PATCH", f"/deployments/{one}", {"entrypoint": "evil.py:start", "path": str(marker.parent)}),
        ("PATCH", f"/deployments/{one}", {"parameters": {"root": str(marker.parent)}}),
        ("DELETE", f"/deployments/{one}", None),
        ("POST", "/deployments/", upsert),
        ("POST", f"/deployments/{one}/create_flow_run", {}),
        ("POST", f"/deployments/{one}/create_flow_run", {"parameters": {"root": str(marker.parent)}}),
        (
            "POST",
            f"/deployments/{one}/create_flow_run",
            {"enforce_parameter_schema": False, "parameters": {"settings": smuggled}},
        ),
        ("POST", f"/deployments/{one}/schedule", {}),
        ("POST", f"/deployments/{one}/schedules", [{"schedule": {"interval": 60}, "active": True}]),
        ("POST", "/flow_runs/", {"flow_id": flow, "deployment_id": one}),
        ("POST", "/flow_runs/filter", {}),
        ("POST", "/flow_runs/history", {}),
        ("POST", "/logs/filter", {}),
        ("POST", "/artifacts/filter", {}),
        ("POST", "/automations/", {"name": "evil", "trigger": trigger, "actions": [action]}),
        ("POST", "/work_pools/", {"name": "evil", "type": "process"}),
        ("POST", "/variables/", {"name": "evil", "value": "1"}),
        ("POST", "/events", []),
        ("POST", "/admin/database/clear", {"confirm": True}),
        ("GET", "/admin/settings", None),
        ("GET", "/csrf-token?client=evil", None),
        ("GET", "/ui/flow_runs/count-task-runs", None),
    ]


def describe_state(served: Any) -> tuple[Any, ...]:
    """What the attacks are after: runs, deployments, automations and work pools."""
    kept = ("id", "name", "entrypoint", "path", "pull_steps", "parameters", "enforce_parameter_schema", "schedules")
    forms = [{key: one[key] for key in kept} for one in served.ask("/deployments/filter", {"sort": "NAME_ASC"})]
    others = [len(served.ask(f"/{kind}/filter", {})) for kind in ("flow_runs", "automations", "work_pools", "flows")]
    return forms, others


def send(served: Any, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, str | None, str]:
    """Status, allowed origin and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    told = answer.status, answer.headers["access-control-allow-origin"], answer.read().decode()
    connection.close()
    return told


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_without_the_key_nothing_is_told_or_done(served: Any, tmp_path: Path) -> None:
    key = served.key()
    before = describe_state(served)
    wrong = [
        EVIL,
        {**EVIL, "Content-Type": "text/plain"},
        {**JSON, "Authorization": f"Basic {encode('ril:guessed')}"},
        {**JSON, "Authorization": f"Basic {encode(key[:-1])}"},
        {**JSON, "Authorization": f"Basic {encode(key.partition(':')[2])}"},
        {**JSON, "Authorization": f"Bearer {key}"},
        {**JSON, "Authorization": f"Basic {key}"},
        {**served.headers, "Authorization": "Basic"},
        {**served.headers, "Host": "evil.example"},
        {**served.headers, "Host": f"evil.example:{served.port}"},
        {**served.headers, "Host": f"127.0.0.1.evil.example:{served.port}"},
    ]
    tried = 0
    for method, path, body in requests(served.form("questions"), tmp_path / "marker"):
        for headers in wrong:
            status, origin, _ = send(served, method, f"/api{path}", body, headers)
            assert status in (400, 401, 403), (method, path, headers)
            assert origin is None or origin != headers.get("Origin"), (method, path, headers)
            tried += 1
    assert tried >= 40
    assert describe_state(served) == before
    assert send(served, "GET", "/api/admin/version", None, {})[0] == 401
    assert send(served, "GET", "/api/admin/version", None, served.headers)[0] == 200
    plain = {"Authorization": served.headers["Authorization"], **EVIL}
    assert send(served, "POST", "/api/deployments/filter", {}, plain)[0] == 403, "the key without a token against CSRF"


def test_paths_that_look_public_are_not(served: Any) -> None:
    """`/health` needs no key: nothing else may pass for it. What is no path of the API is a page of the UI."""
    for path in (
        "/api/health/../deployments/count",
        "/api/health/%2e%2e/deployments/count",
        "//api/admin/version",
        "/api//admin/version",
        "/api/admin/version/health",
        "/api/admin/version?x=/health",
        "/api/admin/version#/health",
        "/api/ready/../admin/version",
        f"http://127.0.0.1:{served.port}/api/admin/version",
        "http://x/api/health/api/admin/version",
        "/api/%61dmin/version",
        "/API/admin/version",
    ):
        status, _, said = send(served, "GET", path, None, EVIL)
        assert status >= 400 or said.startswith("<!"), path
    for origin in ("http://evil.example", "null", "http://localhost", "https://127.0.0.1"):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        status, allowed, _ = send(served, "OPTIONS", "/api/deployments/filter", None, asked)
        assert (status, allowed) == (400, None), origin


SOCKETS = """
import asyncio, json, sys
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

async def try_all(url):
    for path in ("/events/in", "/events/out", "/logs/out"):
        for protocols in (None, ["prefect"]):
            for first in ({"type": "auth"}, {"type": "auth", "token": "ril:guessed"}, {"type": "filter", "filter": {}}):
                try:
                    async with connect(url + path, subprotocols=protocols, proxy=None) as socket:
                        await socket.send(json.dumps(first))
                        print(path, protocols, first, "got", await asyncio.wait_for(socket.recv(), 5))
                except WebSocketException:
                    print("refused")

asyncio.run(try_all(sys.argv[1]))
"""


def test_sockets_need_the_key(served: Any) -> None:
    url = f"ws://127.0.0.1:{served.port}/api"
    told = subprocess.run([sys.executable, "-c", SOCKETS, url], capture_output=True, text=True, timeout=120)
    assert told.stdout.splitlines() == ["refused"] * 18, told.stdout + told.stderr


def test_a_changed_deployment_brings_in_no_code_and_no_other_project(served: Any, tmp_path: Path) -> None:
    """With the key a form can be changed on the server; its runs use the flow and the project of `ril serve`."""
    form, marker = served.form("questions"), tmp_path / "marker"
    evil = {"pull_steps": shell(marker), "entrypoint": "evil.py:start", "path": str(tmp_path)}
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    patch = partial(send, served, "PATCH", f"/api/deployments/{form['id']}")
    assert patch({**evil, "enforce_parameter_schema": False}, served.headers)[0] == 204
    try:
        smuggled = {"runtime": {"engines": {"judge": {"kind": "vllm_server", "args": ["--trust-remote-code"]}}}}
        said = {
            "another project": served.submit("questions", root=str(tmp_path)),
            "a hidden setting": served.submit("questions", settings=smuggled),
            "a profile that is none": served.submit("questions", profile="../../evil"),
            "a stage that is none": served.started(form, {"target": f"x; touch {marker}"}),
            "too many jobs": served.submit("questions", jobs=10**6),
            "an unknown field": served.submit("questions", entrypoint="evil"),
        }
        ended = {name: served.ended(run, 300) for name, run in said.items()}
    finally:
        assert patch({**{key: form[key] for key in evil}, "enforce_parameter_schema": True}, served.headers)[0] == 204
    crashed = {name for name, run in ended.items() if run["state_type"] == "CRASHED"}
    assert crashed <= {"an unknown field", "too many jobs"}, "Prefect calls a run so that it could not begin"
    assert {run["state_type"] for run in ended.values()} == {"FAILED", "CRASHED"}, "with hooks, which load the flow"
    message = {name: run["state"]["message"] for name, run in ended.items()}
    assert message["another project"] == (
        f"this form was made for the project in {str(tmp_path)!r}, and this process serves {served.project}"
    )
    assert "'runtime' was unexpected" in message["a hidden setting"]
    assert "'../../evil' is not one of" in message["a profile that is none"]
    assert message["a stage that is none"].startswith("no stage")
    assert not marker.exists()


def test_the_key_is_private_and_nowhere_else(served: Any) -> None:
    """In no log, database or record of the project, and in no command line."""
    key = served.key()
    holder = served.project / ".ril" / "prefect" / "environment"
    assert holder.stat().st_mode & 0o777 == 0o600
    assert holder.parent.stat().st_mode & 0o777 == 0o700
    places = [place for folder in (served.project, served.home) for place in folder.rglob("*") if place.is_file()]
    assert [place for place in places if key.encode() in place.read_bytes()] == [holder]
    assert not [one for one in served.everything() if key in " ".join(one.cmdline())]


def test_a_stage_without_the_key_does_its_work_without_the_server(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{served.url}/api"
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    assert find_server_fault(url, 5.0) == (
        f"the Prefect server at {url} refuses the key; PREFECT_API_AUTH_STRING has to hold it"
    )
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", served.key())
    assert find_server_fault(url, 5.0) is None


# --- a page of another origin, in Chromium ---------------------------------------------------------------------------

FETCHES = """
const [base, attempts, done] = arguments;
const kinds = [
  {},
  {headers: {"Content-Type": "application/json"}},
  {headers: {"Content-Type": "text/plain"}, credentials: "include"},
  {mode: "no-cors", credentials: "include"},
  {headers: {"Content-Type": "application/json", "Authorization": "Basic cmlsOmd1ZXNzZWQ="}},
];
(async () => {
  const seen = [];
  for (const [method, path, body] of attempts) for (const kind of kinds) {
    try {
      const answer = await fetch(base + path, {method, body: body && JSON.stringify(body), ...kind});
      seen.push(answer.type + " " + answer.status);
    } catch (error) { seen.push("blocked"); }
  }
  done(seen);
})();
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another origin: a page at another port."""
    folder = tmp_path_factory.mktemp("origin")
    (folder / "index.html").write_text("<!doctype html><title>evil</title><p>evil")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


def test_a_page_of_another_origin_reads_and_changes_nothing(
    served: Any, page: Any, origin: str, tmp_path: Path
) -> None:
    before = describe_state(served)
    attempts = requests(served.form("questions"), tmp_path / "marker")
    page.set_script_timeout(180)
    for start in (origin, origin.replace("127.0.0.1", "localhost")):
        page.get(start)
        seen = page.execute_async_script(FETCHES, f"{served.url}/api", attempts)
        assert len(seen) == len(attempts) * 5
        assert set(seen) == {"blocked", "opaque 0"}, "no answer is readable"
    framed = "const f = document.createElement('iframe'); f.src = arguments[0]; document.body.append(f); return 1"
    page.execute_script(framed, f"{served.url}/deployments")
    served.until(lambda: [line for line in page.get_log("browser") if "frame" in line["message"]], 30, "it was framed")
    time.sleep(3)  # a run that was asked for would be there by now
    assert describe_state(served) == before
    assert not (tmp_path / "marker").exists()


def test_a_name_that_leads_to_this_machine_is_not_answered(served: Any, page: Any, tmp_path: Path) -> None:
    """DNS rebinding: for the browser the page of evil.example is then of the server's own origin."""
    before = describe_state(served)
    page.get(f"http://evil.example:{served.port}/deployments")
    assert page.find_element("tag name", "body").text == "Invalid host header"
    page.set_script_timeout(180)
    seen = page.execute_async_script(FETCHES, "/api", requests(served.form("questions"), tmp_path / "marker"))
    assert set(seen) <= {"basic 400", "blocked", "opaque 0"}
    assert describe_state(served) == before

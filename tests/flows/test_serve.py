"""`ril serve` itself: where it listens, what it lets be read, how forms follow params.yaml, and which runs are
alive.
"""

import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.ui.forms_runner import REPORT
from flows.ui.run_locks import hold_run_lock, list_abandoned, list_alive

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


def test_only_this_machine_is_answered(served: Any) -> None:
    listening = served.listening()
    assert served.port in [address.port for address in listening]
    assert len(listening) >= 2, "the server and the reports; what tells a run of its cancel comes with the first run"
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_nothing_may_reach_another_machine(served: Any) -> None:
    """Who tried is named when the last test with this `ril serve` has ended."""
    for process in served.everything():
        assert "offline" in process.environ()["PYTHONPATH"], process.cmdline()


def test_reports_are_readable_and_nothing_else_is(served: Any) -> None:
    page = served.project / "reports" / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("the report")
    (address,) = {
        environment[REPORT] for process in served.everything() if REPORT in (environment := process.environ())
    }
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.read() == b"the report"
    (page.parent / "outside").symlink_to(served.project / "params.yaml")
    token = urllib.parse.urlsplit(address).path.split("/")[1]
    start = address.partition(token)[0]
    refused = [
        f"{start}report/index.html",
        f"{start}{token}x/report/index.html",
        f"{start}{token}/",
        f"{start}{token}/report/",
        f"{start}{token}/report/outside",
        f"{start}{token}/../params.yaml",
        f"{start}{token}/%2e%2e/params.yaml",
    ]
    for one in [*refused, urllib.request.Request(address, headers={"Host": "evil.example"})]:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(one, timeout=20)
    (page.parent / "outside").unlink()
    page.unlink()


def test_forms_follow_params_yaml(served: Any) -> None:
    path = served.project / "params.yaml"
    text = path.read_text()
    try:
        path.write_text(yaml.safe_dump({**yaml.safe_load(text), "report": {"samples": 7}}, sort_keys=False))
        served.until(
            lambda: served.form("report")["parameters"]["settings"] == {"report": {"samples": 7}}, 60, "the form stayed"
        )
    finally:
        path.write_text(text)
    served.until(
        lambda: served.form("report")["parameters"]["settings"] == {"report": {"samples": 12}}, 60, "the form stayed"
    )


# --- who is alive ----------------------------------------------------------------------------------------------------


def test_a_claim_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    """The dead one ends without a word, as after SIGKILL."""
    dies = (
        f"import os, pathlib, flows.ui.run_locks as c\nwith c.hold_run_lock(pathlib.Path({str(tmp_path)!r}), "
        "'dead'):\n    os._exit(9)"
    )
    assert (
        subprocess.run([sys.executable, "-c", dies], cwd=Path(__file__).resolve().parents[2], timeout=60).returncode
        == 9
    )
    with hold_run_lock(tmp_path, "living"):
        assert list_alive(tmp_path, os.getppid()) == [os.getpid()]
        assert list_alive(tmp_path, 1) == [] or os.getppid() == 1
        assert list_abandoned(tmp_path) == ["dead"]
        assert list_abandoned(tmp_path) == []
    assert list_alive(tmp_path, os.getppid()) == []

"""`ril serve` itself: where it listens, a form used in a browser, and what is left when it ends or is killed."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.claims import abandoned, alive, claimed

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"
LONG = {"models": {"judge": {"build": {"steps": 100000}}}}


def test_only_this_machine_is_answered(served: Any) -> None:
    listening = [
        connection.laddr
        for process in served.everything()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert served.port in [address.port for address in listening]
    assert len(listening) >= 3, "the server, the reports, and what tells a run of its cancel"
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_reports_are_readable_and_nothing_else_is(served: Any) -> None:
    page = served.project / "reports" / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("the report")
    address = served.form("report")["parameters"]["report"]
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.read() == b"the report"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(address.replace("report/index.html", "../params.yaml"), timeout=20)
    page.unlink()


def test_forms_follow_params_yaml(served: Any) -> None:
    path = served.project / "params.yaml"
    text = path.read_text()
    try:
        path.write_text(yaml.safe_dump({**yaml.safe_load(text), "report": {"samples": 7}}, sort_keys=False))
        served.until(lambda: served.form("report")["parameters"]["settings"] == {"report": {"samples": 7}}, 60, "the form stayed")
    finally:
        path.write_text(text)
    served.until(lambda: served.form("report")["parameters"]["settings"] == {"report": {"samples": 12}}, 60, "the form stayed")


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --window-size=1280,1600"
    for flag in [*flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    yield browser
    browser.quit()


FIELD = (
    "//span[contains(@class, 'schema-form-property__label') and normalize-space() = '{}']"
    "/ancestor::*[contains(concat(' ', @class, ' '), ' schema-form-property ')][1]"
)


@pytest.mark.browser
def test_a_form_has_typed_fields_with_help_and_a_click_starts_the_run(served: Any, page: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    form = served.form(JUDGE)
    page.get(f"{served.url}/deployments/deployment/{form['id']}/run")
    (rate,) = WebDriverWait(page, 120).until(lambda shown: shown.find_elements("xpath", FIELD.format("Learning Rate")))
    assert "Peak rate of AdamW; too high forgets, too low learns nothing." in rate.text
    entry = rate.find_element("css selector", "input")
    assert (entry.get_attribute("type"), float(entry.get_attribute("value"))) == ("number", 0.002)
    kind = page.find_element("xpath", FIELD.format("Lr Scheduler Type"))
    assert "linear" in kind.text
    page.find_element("xpath", FIELD.format("Even when nothing changed"))

    files = [served.project / "params.yaml", *served.project.glob("dvc.lock")]
    before = [path.read_bytes() for path in files]
    entry.send_keys(Keys.CONTROL, "a")
    entry.send_keys("0.004")
    page.find_element("css selector", "form.flow-run-create-form-v2 button[type=submit]").click()

    def started() -> Any:
        runs = served.ask("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [form["id"]]}}})
        rates = {run["id"]: run["parameters"]["settings"]["models"]["judge"]["build"].get("learning_rate") for run in runs}
        return next((run for run, value in rates.items() if value == 0.004), None)

    run = served.ended(served.until(started, 60, "the click started no run"))
    assert run["state_type"] == "COMPLETED", served.lines(run["id"])
    assert run["state"]["message"].startswith("Experiment ")
    assert served.artifact(run["id"], "experiment").count("models.judge.build.learning_rate = 0.004 (was 0.002)") == 1
    assert [path.read_bytes() for path in files] == before


# --- the end of it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, make_served: Callable[[Path], Any]) -> Iterator[Any]:
    """A `ril serve` that the test may kill."""
    one = make_served(tmp_path)
    yield one
    one.kill()


def test_a_killed_run_is_marked_and_its_work_goes_on_and_ending_ril_serve_ends_everything(own: Any) -> None:
    run = own.submit(JUDGE, settings=LONG)
    own.until(lambda: list(own.project.glob(".ril/runs/model@judge/*/step_*/DONE")), 150, "no checkpoint")
    own.kill(but=own.workers())  # `ril serve`, the server, the run's own process
    assert len(own.workers()) == 2, "dvc and the stage outlive who watches them"

    own.start()
    assert own.run(run)["state_type"] == "CRASHED"
    assert "Its process was killed" in own.run(run)["state"]["message"]
    other = own.submit(JUDGE, settings={"models": {"judge": {"build": {"steps": 99999}}}})
    own.until(lambda: len(own.workers()) == 4, 150, "the second run did not start")
    own.process.send_signal(signal.SIGTERM)
    own.process.wait(90)
    left = [process for process in own.workers() if "steps=99999" in " ".join(process.cmdline())]
    assert not left, f"of run {other}"


def test_a_claim_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    """The dead one ends without a word, as after SIGKILL."""
    dies = f"import os, pathlib, flows.claims as c\nwith c.claimed(pathlib.Path({str(tmp_path)!r}), 'dead'):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dies], cwd=Path(__file__).resolve().parents[2], timeout=60).returncode == 9
    with claimed(tmp_path, "living"):
        assert alive(tmp_path, os.getppid()) == [os.getpid()]
        assert alive(tmp_path, 1) == [] or os.getppid() == 1
        assert abandoned(tmp_path) == ["dead"]
        assert abandoned(tmp_path) == []
    assert alive(tmp_path, os.getppid()) == []

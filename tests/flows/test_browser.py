"""A form in headless Chromium, used as a person would: fields and help, a click that starts a run, a refusal,
Cancel.
"""

import json
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest

from flows.ui.access import access_file

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

JUDGE = "model@judge"
RATE = "Learning Rate"
FIELD = (
    "//span[contains(@class, 'schema-form-property__label') and starts-with(normalize-space(), '{}')]"
    "/ancestor::*[contains(concat(' ', @class, ' '), ' schema-form-property ')][1]"
)
SUBMIT = "form button[type=submit]"
STOP = "button.p-button--destructive"  # Cancel, and Confirm in the dialog that it opens


def opened(served: Any, page: Any, target: str) -> Any:
    """Opens the form of `target` and returns a function that finds a field by its title."""
    login(served, page)
    page.get(f"{served.url}/deployments/deployment/{served.form(target)['id']}/run")
    served.until(lambda: page.find_elements("xpath", FIELD.format("Profile")), 180, "the form did not open")

    def field(title: str) -> Any:
        return page.find_element("xpath", FIELD.format(title))

    return field


def login(served: Any, page: Any) -> None:
    """Opens the link that `ril serve` prints."""
    link = access_file(served.project).read_text().splitlines()[0].removeprefix("# the forms: ")
    page.get(link)
    served.until(lambda: page.current_url.endswith("/deployments"), 60, "the link did not log in")


def test_the_link_logs_in_without_a_banner(served: Any, page: Any) -> None:
    login(served, page)
    served.until(lambda: "run-discriminator" in page.find_element("tag name", "body").text, 60, "no list of forms")
    assert "went wrong" not in page.find_element("tag name", "body").text
    assert not [line for line in page.get_log("browser") if line["level"] == "SEVERE"]


def write(entry: Any, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    entry.send_keys(Keys.CONTROL, "a")
    entry.send_keys(text)


def test_the_form_of_ril_shows_typed_fields_with_help(served: Any, page: Any) -> None:
    field = opened(served, page, "ril")
    assert "Peak rate of AdamW; too high forgets, too low learns nothing." in field(RATE).text
    entry = field(RATE).find_element("css selector", "input")
    rate = served.form("ril")["parameters"]["settings"]["ril"]["learning_rate"]
    assert (entry.get_attribute("type"), float(entry.get_attribute("value"))) == ("number", rate)
    assert field("Keep").find_elements("css selector", ".p-select"), "a choice, not a text"
    for title in ("Stages before it too", "Even when nothing changed"):
        assert field(title).find_element("css selector", "input").get_attribute("type") == "checkbox"


def test_a_wrong_value_is_refused_and_a_changed_one_is_an_experiment(served: Any, page: Any) -> None:
    entry = opened(served, page, JUDGE)(RATE).find_element("css selector", "input")
    assert float(entry.get_attribute("value")) == 0.002
    write(entry, "-1")
    page.find_element("css selector", SUBMIT).click()
    wrong = "settings.models.judge.build.learning_rate'. Failure reason: -1 is less than or equal to the minimum of 0"
    served.until(lambda: wrong in page.find_element("tag name", "body").text, 60, "the form took -1")

    files = [served.project / "params.yaml", *served.project.glob("dvc.lock")]
    before = [path.read_bytes() for path in files]
    write(entry, "0.004")
    page.find_element("css selector", SUBMIT).click()
    run = served.ended(served.until(lambda: started(served, 0.004), 60, "the click started no run"), 300)
    assert run["state_type"] == "COMPLETED", served.lines(run["id"])
    assert "models.judge.build.learning_rate = 0.004 (was 0.002)" in served.artifact(run["id"], "experiment")
    assert [path.read_bytes() for path in files] == before
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"],
        cwd=served.project,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run["state"]["message"].split(";")[0].removeprefix("Experiment ") in json.dumps(json.loads(shown.stdout))


def started(served: Any, rate: float) -> str | None:
    """The run of the judge's form with this learning rate."""
    found = served.ask("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [served.form(JUDGE)["id"]]}}})
    rates = {run["id"]: run["parameters"]["settings"]["models"]["judge"]["build"].get("learning_rate") for run in found}
    return next((str(run) for run, value in rates.items() if value == rate), None)


def test_unchanged_values_are_recorded_in_dvc_lock(served: Any, page: Any) -> None:
    opened(served, page, "questions")
    before = {run["id"] for run in runs_of(served, "questions")}
    page.find_element("css selector", SUBMIT).click()
    run = served.until(
        lambda: [each for each in runs_of(served, "questions") if each["id"] not in before], 60, "no run"
    )[0]
    ended = served.ended(run["id"], 300)
    assert ended["state_type"] == "COMPLETED", served.lines(run["id"])
    assert ended["state"]["message"] in ("Ran questions; dvc.lock says so", "Everything was up to date")
    assert "questions:" in (served.project / "dvc.lock").read_text()


def runs_of(served: Any, target: str) -> list[Any]:
    """Runs of the form of `target`."""
    return list(
        served.ask("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [served.form(target)["id"]]}}})
    )


def test_cancel_ends_every_process_and_the_next_run_goes_on(served: Any, page: Any) -> None:
    settings = {"models": {"judge": {"build": {"steps": 5000}}}}
    kept = set(served.project.glob(".ril/runs/model@judge/*/step_*/DONE"))
    run = served.submit(JUDGE, settings=settings)
    served.until(lambda: set(served.project.glob(".ril/runs/model@judge/*/step_*/DONE")) - kept, 300, "no checkpoint")
    groups = {os.getpgid(process.pid) for process in served.workers()}
    assert len(groups) == 1, "dvc leads the group of the stage"
    assert {address.ip for address in served.listening()} == {"127.0.0.1"}, "also while a stage is at work"

    login(served, page)
    page.get(f"{served.url}/runs/flow-run/{run}")
    (button,) = served.until(lambda: page.find_elements("css selector", STOP), 180, "no button to cancel")
    button.click()
    _, confirm = served.until(
        lambda: found if len(found := page.find_elements("css selector", STOP)) == 2 else None, 60, "no dialog"
    )
    confirm.click()
    assert served.ended(run, 120)["state_type"] == "CANCELLED", served.lines(run)
    assert not [process for process in psutil.process_iter() if group_of(process) in groups]
    assert not served.workers()

    second = served.submit(JUDGE, settings=settings)
    served.until(lambda: "model@judge: resumes after step" in served.lines(second), 300, "it did not go on")
    served.ask(f"/flow_runs/{second}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.ended(second, 120)["state_type"] == "CANCELLED"


def group_of(process: psutil.Process) -> int | None:
    """Its process group; none for one that has ended, reaped or not."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None

"""A study that is really run: DVC experiments, their records, resuming, a failure, and the page."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.dvc.recorded import find_recorded, take_snapshot
from studies.records import StudyRecord, find_departures, write_record
from studies.runs import Planner
from studies.study import read_study

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
# Two arms without teachers (2 engines instead of 6), and one that fails in its first stage.
ARMS = {
    "base": {"title": "Base", "evaluation": "base"},
    "broken": {
        "title": "Broken",
        "evaluation": "base",
        "params": {"questions": {"kind": "rows", "path": "broken.parquet"}},
    },
    "warm_start": {"title": "Warm start", "evaluation": "warm_start"},
}
STUDY = {"arms": ARMS, "order": [["base"], ["warm_start"]], "differences": [["warm_start", "base"]]}


@pytest.fixture
def patiently(start: Start) -> Call:
    """Runs `python -m <module> <arguments>` to its end, for ten minutes less one: three experiments on a busy
    machine.
    """

    def finish(project: Path, module: str, *arguments: str) -> tuple[int, str, str]:
        process = start(project, module, *arguments, PYTHONUNBUFFERED="1")
        try:
            out, err = process.communicate(timeout=540)
        finally:
            process.terminate()  # it takes its dvc along; SIGKILL would leave them
        return process.returncode, out, err

    return finish


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_is_run_once_and_its_page_comes_from_the_records(
    make_study: Callable[..., Path], call: Call, patiently: Call
) -> None:
    project = make_study(**STUDY)
    (project / "broken.parquet").write_text("no parquet")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "broken.parquet"], [*identity, "commit", "--quiet", "--message", "A file that is none"]):
        subprocess.run(["git", *command], cwd=project, check=True, timeout=60)
    run = ("experiments", "run", "small", "--jobs", "2")

    code, out, err = call(project, "flows.cli", *run, "--dry-run")
    assert code == 0, out + err
    assert "compared: 3 runs, 0 finished" in out
    assert not (project / "studies" / "results").exists()

    code, out, err = patiently(project, "flows.cli", *run)
    assert code == 1, out + err
    assert "failed: small-broken-w3-s4" in out
    assert "2 of 3 runs are in studies/results/small" in out
    first_page = (project / "studies/results/small.md").read_text()
    records = {
        path.stem: json.loads(path.read_text()) for path in (project / "studies/results/small/compared").glob("*.json")
    }
    assert set(records) == {"base-w3-s4", "warm_start-w3-s4"}
    base, warm_start = records["base-w3-s4"], records["warm_start-w3-s4"]
    assert base["scores"]["questions"] == len(base["right"]) == 4
    assert base["questions_sha256"] == warm_start["questions_sha256"]
    assert set(base["weights"]) == {"model@student", "model@judge"}
    assert base["weights"].items() < warm_start["weights"].items()
    assert set(warm_start["seconds"]) == {"warm_start", "evaluate@warm_start"}, "the rest was made by the first arm"
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True, timeout=60
    )
    assert base["commit"] == head.stdout.strip()
    assert base["committed"]
    assert not list((project / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*")), (
        "copies of failed experiments are removed"
    )
    assert not (project / "dvc.lock").exists(), "the workspace is left alone"
    assert list((project / ".ril" / "responses").iterdir()), "answers are in the store of the checkout"

    # a lost record is read from its experiment; nothing that was finished is run again
    (project / "studies/results/small/compared/base-w3-s4.json").unlink()
    code, out, err = call(project, "flows.cli", *run, "--arm", "base", "--arm", "warm_start")
    assert code == 0, out + err
    assert "base (world 3, seed 4) already finished: " in out
    assert "started; stages to run" not in out
    again = json.loads((project / "studies/results/small/compared/base-w3-s4.json").read_text())
    times = ("seconds", "core_seconds")  # of the run that was lost: they stand in its record alone
    assert drop(again, times) == drop(base, times)
    (project / "studies/results/small/compared/base-w3-s4.json").write_text(json.dumps(base))

    code, out, err = call(project, "flows.cli", *run, "--arm", "base", "--dry-run")
    assert code == 0, out + err
    assert out.splitlines()[-1] == "nothing left to run; all records are in studies/results/small"

    code, out, err = call(project, "flows.cli", "experiments", "report", "small")
    assert code == 0, out + err
    assert "one unit only" in out
    page = (project / "studies/results/small.md").read_text()
    assert page.split("## Provenance")[0] == first_page.split("## Provenance")[0]
    assert f"| compared/base-w3-s4 | {base['key'][:12]} |" in page
    assert (project / "studies/results/small.html").stat().st_size > 5000
    found = find_recorded(project, base["experiment"])
    assert found is not None
    assert found.revision == base["revision"]
    with pytest.raises(FileNotFoundError):
        found.read_text("reports/ril/metrics.json")

    # an experiment is told from the run that was planned, whatever its name says
    study = read_study(project, "small")
    run = Planner(project, study, "small").plan_comparison(["base"], study.seeds, {})[0]
    planned = take_snapshot(project, "stages", "dvc.yaml")
    assert find_departures(run, found, planned) == []
    other = replace(run, values={**run.values, "seed": 5})
    for path in ("stages/policy/rewards.py", "stages/evaluate.py"):  # the run does not reach the first
        with (project / path).open("a") as code:
            code.write("\n# an edit while it was copied\n")
    assert find_departures(run, found, take_snapshot(project, "stages", "dvc.yaml")) == ["stages/evaluate.py"]
    assert find_departures(other, found, planned) == ["params.yaml"]


def workers(project: Path) -> list[psutil.Process]:
    """Processes of dvc and of stages at work in the project or in a copy of it."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        inside = (process.info["cwd"] or "").startswith(str(project)) and process.info["status"] != psutil.STATUS_ZOMBIE
        if inside and ("-m dvc" in words or "flows.run" in words):
            found.append(process)
    return found


@pytest.mark.slow
def test_a_stop_ends_every_process_and_leaves_no_copy(
    make_study: Callable[..., Path], start: Start, call: Call
) -> None:
    project = make_study(seeds=[{"world": world, "seed": 1} for world in (3, 4)])  # two worlds: both run at once
    process = start(project, "flows.cli", "experiments", "run", "small", "--jobs", "2", PYTHONUNBUFFERED="1")
    end = time.monotonic() + 120
    while len([one for one in workers(project) if "flows.run" in one.info["cmdline"]]) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "two experiments did not start"
        time.sleep(0.1)
    code, _, err = call(project, "flows.cli", "experiments", "run", "small")
    assert code == 2
    assert f"error: study small (process {process.pid}) runs in this project" in err
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 143, out + err
    assert out.count("started; stages to run: ") == 2
    assert "FAILED" not in out
    assert out.splitlines()[-1] == "stopped; finished runs are kept, and the same command continues"
    assert not workers(project)
    assert not list((project / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*"))
    assert not (project / "studies" / "results").exists()


def test_code_that_git_does_not_know_is_refused(make_study: Callable[..., Path], call: Call) -> None:
    project = make_study()
    (project / "stages" / "new.py").write_text("")
    code, _, err = call(project, "flows.cli", "experiments", "run", "small")
    assert code == 2
    assert "stages/new.py: untracked" in err


def drop(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


@pytest.mark.slow
def test_seeds_and_worlds_that_a_study_does_not_have_are_refused(make_study: Callable[..., Path], call: Call) -> None:
    project = make_study(seeds=[{"world": world, "seed": 1} for world in (3, 4)])
    run = (project, "flows.cli", "experiments", "run", "small")
    code, _, err = call(*run, "--seeds", "3")
    assert code == 2
    assert "--seeds 3, but studies/small.yaml lists 2 pairs of seeds" in err
    code, _, err = call(*run, "--world", "4", "--world", "5")
    assert code == 2
    assert "--world 5, but the worlds are 3, 4 (studies/small.yaml)" in err
    code, out, err = call(*run, "--world", "4", "--dry-run")
    assert code == 0, err
    assert "compared: 2 runs, 0 finished" in out
    assert "(world 3" not in out


def test_a_page_that_cannot_be_written_is_a_line(
    make_study: Callable[..., Path], call: Call, record: Callable[..., StudyRecord]
) -> None:
    project = make_study()
    code, _, err = call(project, "flows.cli", "experiments", "report", "small")
    assert code == 2
    assert err == "error: studies/results/small has no record of a compared arm; run: ril experiments run small\n"
    for one in (record("warm_start", 3, 0.5, seed=4), record("gad", 3, 0.5, seed=4, questions_sha256="others")):
        write_record(project / "studies/results/small", one)
    code, _, err = call(project, "flows.cli", "experiments", "report", "small")
    assert code == 2
    assert (
        err == "error: compared/gad-w3-s4 and compared/warm_start-w3-s4 answered different questions; run one of "
        "them again\n"
    )

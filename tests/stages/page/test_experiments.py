"""Experiments of the report: those that DVC itself recorded, once each, with what was changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages.config.params import load_params
from stages.page.comparison import THIS, ExperimentList, find_experiments
from stages.page.gains import tabulate_gains

SCORE = """
import json, pathlib, ruamel.yaml
rate = ruamel.yaml.YAML(typ="safe").load(pathlib.Path("params.yaml"))["ril"]["learning_rate"]
pathlib.Path("reports/report").mkdir(parents=True, exist_ok=True)
summary = {"accuracy": 0.5 + 100 * rate, "base": 0.5, "gain_over_base": 100 * rate, "gain_over_base_error": 0.01}
pathlib.Path("reports/report/metrics.json").write_text(json.dumps({"summary": summary}))
"""
PIPELINE = """
stages:
  report:
    cmd: python score.py
    params: [ril]
    deps: [score.py]
    metrics: [reports/report/metrics.json: {cache: false}]
"""


@pytest.fixture
def run(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`run(program, *arguments)` runs git or dvc in a project with one stage, which DVC and Git know; returns what it
    printed.
    """
    project = make_project({"ril": {"learning_rate": 4.0e-4}})  # the scores below are made of it
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    names = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def call(program: str, *arguments: str) -> str:
        environment = {**os.environ, **names, "PATH": path, "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(
            [program, *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (project / "score.py").write_text(SCORE)
    (project / "dvc.yaml").write_text(PIPELINE)
    call("git", "init", "--quiet")
    call("dvc", "init", "--quiet")
    call("dvc", "repro", "--quiet")
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "--message", "A run")
    return call


def found_in(project: Path, summary: dict[str, Any]) -> ExperimentList:
    job = open_job("report", None, project, load_params(project / "params.yaml"))
    return find_experiments(job, summary, job.repository())


def summary_in(project: Path) -> dict[str, Any]:
    return json.loads((project / "reports/report/metrics.json").read_text())["summary"]


@pytest.mark.slow
def test_every_experiment_of_dvc_is_there_once(run: Callable[..., str]) -> None:
    project = Path(run("git", "rev-parse", "--show-toplevel").strip())
    alone = found_in(project, summary_in(project))
    assert [one.name for one in alone.experiments] == [THIS]  # HEAD is this run

    run("dvc", "exp", "run", "--quiet", "--name", "high", "--set-param", "ril.learning_rate=1.0e-3")
    applied = found_in(project, summary_in(project))
    assert [(one.name, one.here) for one in applied.experiments] == [("high", True), ("HEAD", False)]

    run("git", "checkout", "--quiet", "--", ".")
    run("dvc", "exp", "run", "--quiet", "--temp", "--name", "other", "--set-param", "ril.objective=dr_grpo")
    commit = run("git", "rev-parse", "HEAD").strip()
    root = run("git", "commit-tree", "-m", "No report", run("git", "mktree").strip()).strip()
    run("git", "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/unfinished", root)
    both = found_in(project, summary_in(project))
    assert both.left_out == 1
    assert [one.name for one in both.experiments] == [THIS, "other", "high"]
    this, other, high = both.experiments
    assert (this.changed, other.changed, high.changed) == (
        (),
        ("ril.objective: dr_grpo",),
        ("ril.learning_rate: 0.001",),
    )
    assert (this.objective, other.objective) == ("ril", "dr_grpo")
    assert high.commit == run("git", "rev-parse", f"refs/exps/{commit[:2]}/{commit[2:]}/high")[:8]
    assert [round(row["relative"], 3) for row in tabulate_gains(both)] == [0.08, 0.08, 0.2]


@pytest.mark.slow
def test_a_temporary_experiment_sees_those_of_the_checkout(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(run("git", "rev-parse", "--show-toplevel").strip())
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "tried")
    job = open_job("report", None, elsewhere, load_params(project / "params.yaml"))
    seen = find_experiments(job, {"accuracy": 0.9}, job.repository())
    assert [(one.name, one.here) for one in seen.experiments] == [("tried", True), ("HEAD", False)]


def test_without_a_repository_this_run_stands_alone(
    make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    project = make_project({})
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    seen = found_in(project, {"accuracy": 0.5})
    assert [(one.name, one.here) for one in seen.experiments] == [(THIS, True)]
    assert seen.left_out == 0
    assert tabulate_gains(seen)[0]["relative"] is None

"""Runs that are started from a form, on a real server: recorded by DVC, refused, queued, cancelled, resumed."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect import Flow

from flows.dvc.outcome import StageLog, format_reasons
from flows.ui.deployments import FILE, describe_form, format_prefect_yaml, list_pool_deployments
from flows.ui.forms import make_forms
from flows.ui.forms_runner import make_comparison_deployment, make_deployment
from flows.ui.plan import make_plan
from flows.ui.trigger import start
from stages.config.table import STAGES
from stages.config.yaml import ParamsError, read_yaml

JUDGE = "model@judge"


NOT_OFFERED = "the form of ril does not offer this: Validation failed for field 'settings"


def judge(**values: Any) -> dict[str, Any]:
    return {"models": {"judge": {"build": values}}}


# --- without a server ------------------------------------------------------------------------------------------------


def test_there_is_a_form_for_every_stage_and_its_values_change_nothing(root: Path) -> None:
    found = make_forms(root)
    assert {form.stage for form in found} == {"pipeline", *STAGES}
    for form in found:
        assert make_plan(root, form.target, form.values).changes == (), form.target


def test_every_field_of_a_form_has_a_type_and_help(root: Path) -> None:
    (form,) = (form for form in make_forms(root) if form.target == "ril")
    blocks = form.schema["definitions"]
    assert list(blocks["Settings"]["properties"]) == ["ril", "seed", "verdict", "discriminator"], (
        "its own block comes first"
    )
    fields = blocks["Ril"]["properties"]
    assert fields["learning_rate"]["exclusiveMinimum"] == 0
    assert fields["keep"]["enum"] == ["best", "last", "both"]
    for name, field in fields.items():
        assert field["description"], name
        assert {"type", "$ref", "anyOf"} & field.keys(), name
    assert [field["position"] for field in fields.values()] == list(range(len(fields)))


def test_only_what_differs_is_an_override(root: Path) -> None:
    now = read_yaml(root / "params.yaml")
    values = {"ril": {"learning_rate": 1e-3, "weight_decay": 0.1, "steps": now["ril"]["steps"]}}
    assert make_plan(root, JUDGE, judge(hidden_size=now["models"]["judge"]["build"]["hidden_size"])).changes == ()
    assert make_plan(root, "ril", values).overrides == ["ril.learning_rate=0.001", "+ril.weight_decay=0.1"]
    fewer = make_plan(root, "model@student", {"models": {"student": {"build": {"styles": {"steps": 1.0}}}}})
    assert fewer.overrides == ["models.student.build.styles.steps=1.0", "~models.student.build.styles.arrows"]
    over = make_plan(root, "ril", {"ril": {"steps": 7}}, "smoke").overrides
    assert "ril.steps=7" in over
    assert "report.samples=4" in over


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        ("ril", {"ril": {"steps": 3}}, "the form: ril: warmup_steps is 5, more than steps (3); lower it"),
        ("ril", {"ril": {"step": 1}}, f"{NOT_OFFERED}.ril'. Failure reason: Additional properties are not allowed"),
        ("rill", {}, "no stage 'rill'; stages: pipeline, model@student"),
        ("ril; touch x", {}, "no stage 'ril; touch x'; stages: pipeline"),
        # what a request with `enforce_parameter_schema: false` would bring in
        ("ril", {"runtime": {"engines": {}}}, f"{NOT_OFFERED}'. Failure reason: Additional properties"),
        ("ril", {"models": {"judge": {}}}, f"{NOT_OFFERED}'. Failure reason: Additional properties"),
        ("ril", [], f"{NOT_OFFERED}'. Failure reason: [] is not of type 'object'"),
    ],
)
def test_values_that_can_not_be_used_are_a_line(root: Path, target: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        make_plan(root, target, values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_profile_is_one_of_those_offered(root: Path) -> None:
    with pytest.raises(
        ParamsError,
        match=r"'profile'. Failure reason: '../x' is not one of \['none', 'easy_vqa', 'lora_1x24', .*'paper'",
    ):
        make_plan(root, "ril", {}, "../x")


def test_the_output_of_dvc_is_understood() -> None:
    said: list[str] = []
    seen = StageLog(said.append)
    for piece in ("Running sta", "ge 'ril':\n> python\n  5%|#\r 10%|##\nStage 'pool' didn't", " change, skipping\n"):
        seen.write(piece)
    assert seen.stages == {"ril": "ran", "pool": "skipped: nothing changed"}
    assert said[:4] == ["Running stage 'ril':", "> python", " 10%|##", "Stage 'pool' didn't change, skipping"]
    seen.write("teacher@internvl3 | Running stage 'teacher@internvl3':\n")
    assert seen.stages["teacher@internvl3"] == "ran", "side by side"
    assert seen.busy is None
    seen.write("ERROR: '/a/data' is busy, it is being blocked by:\n  (PID 12): dvc repro\n")
    assert seen.busy == "/a/data, held by process 12"
    assert format_reasons(
        [{"changed deps": {"data/pool": "modified", "params.yaml": {"ril.steps": "modified"}}}, "changed command"]
    ) == ("changed deps: data/pool modified, ril.steps modified; changed command")


def test_dvc_never_starts_a_form(root: Path) -> None:
    for stage in read_yaml(root / "dvc.yaml")["stages"].values():
        assert stage.get("do", stage)["cmd"].startswith("exec python -m flows.run ")


def test_the_work_pool_starts_what_the_forms_start(root: Path) -> None:
    known = inspect.signature(start.fn).parameters
    for entry in read_yaml(root / "prefect.yaml")["deployments"]:
        assert entry["entrypoint"] == "flows/ui/trigger.py:start"
        assert set(entry["parameters"]) <= set(known)
        assert entry["concurrency_limit"]["limit"] == 1


def test_the_work_pool_and_the_forms_have_one_description(root: Path) -> None:
    assert (root / FILE).read_text() == format_prefect_yaml(), "python -m flows.ui.deployments --write"
    for form in make_forms(root):
        made, told = make_deployment(root, form, ".x"), describe_form(str(root), form)
        assert (made.name, made.description, made.parameters) == (f"{told.name}.x", told.description, told.parameters)
        assert (made.entrypoint, made.concurrency_limit) == (told.entrypoint, told.limit)
    (pool, *_) = list_pool_deployments()
    assert pool.file_entrypoint == "flows/ui/trigger.py:start"


def test_forms_start_what_can_be_imported(root: Path) -> None:
    made = [*(make_deployment(root, form) for form in make_forms(root)), make_comparison_deployment(root)]
    assert {one.entrypoint for one in made} == {"flows.ui.trigger.start", "flows.ui.compare.compare_experiments"}
    for entrypoint in {one.entrypoint for one in made}:
        module, _, name = entrypoint.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), Flow)


# --- with a server ---------------------------------------------------------------------------------------------------


@pytest.mark.prefect
@pytest.mark.slow
def test_values_as_they_are_run_in_the_workspace_and_a_second_run_says_what_it_skips(served: Any) -> None:
    for path in ("data", ".dvc/cache"):  # whatever other tests have left
        shutil.rmtree(served.project / path, ignore_errors=True)
    (served.project / "dvc.lock").unlink(missing_ok=True)
    first = served.ended(served.submit("questions"))
    assert first["state_type"] == "COMPLETED", served.lines(first["id"])
    assert first["state"]["message"] == "Ran questions; dvc.lock says so"
    assert "questions" in read_yaml(served.project / "dvc.lock")["stages"]
    (row,) = served.artifact(first["id"], "stages")
    assert (row["now"], row["dvc.lock"]) == ("ran", "new")
    assert "data/questions deleted" in row["out of date before"]
    assert [run["state_type"] for run in served.stage_runs(first["id"])] == ["COMPLETED"]

    second = served.ended(served.submit("questions"))
    assert (second["state_type"], second["state"]["message"]) == ("COMPLETED", "Everything was up to date")
    assert served.artifact(second["id"], "stages") == [
        {"stage": "questions", "out of date before": "no", "now": "skipped: nothing changed", "dvc.lock": "as before"}
    ]
    assert served.stage_runs(second["id"]) == []


@pytest.mark.prefect
@pytest.mark.slow
def test_a_changed_learning_rate_is_an_experiment_and_leaves_the_workspace_alone(served: Any) -> None:
    files = [path for path in (served.project / "params.yaml", served.project / "dvc.lock") if path.is_file()]
    before = [path.read_bytes() for path in files]
    run = served.ended(served.submit(JUDGE, settings=judge(learning_rate=0.003)))
    assert run["state_type"] == "COMPLETED", served.lines(run["id"])
    assert [path.read_bytes() for path in files] == before
    assert not (served.project / "data" / "model" / "judge").exists()
    name = f"{run['name']}-{run['id'][:4]}"
    assert run["state"]["message"] == f"Experiment {name}; to adopt it: dvc exp apply {name}"
    assert f"dvc exp apply {name}" in served.artifact(run["id"], "experiment")
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"],
        cwd=served.project,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert name in json.dumps(json.loads(shown.stdout))
    assert '"learning_rate": 0.003' in shown.stdout

    compared = served.ended(served.submit("compare"))
    assert compared["state_type"] == "COMPLETED", served.lines(compared["id"])
    rows = {row["run"]: row for row in served.artifact(compared["id"], "compare")}
    assert rows["workspace"]["changed"] == ""
    assert "models.judge.build.learning_rate = 0.003" in rows[name]["changed"]
    assert served.ended(served.submit("compare", experiments=["nobody"]))["state"]["message"].startswith(
        "no experiment nobody in"
    )


@pytest.mark.prefect
@pytest.mark.slow
def test_experiments_of_two_forms_that_start_at_once_both_come_out(served: Any) -> None:
    runs = [served.submit("questions", settings={"world": {"seed": 5}}), served.submit(JUDGE, settings=judge(steps=4))]
    ended = [served.ended(run, 300) for run in runs]
    assert [run["state_type"] for run in ended] == ["COMPLETED", "COMPLETED"], "\n".join(map(served.lines, runs))
    refs = subprocess.run(
        ["git", "for-each-ref", "refs/exps"], cwd=served.project, capture_output=True, text=True, timeout=60
    )
    for run in ended:
        assert run["state"]["message"].split(";")[0].removeprefix("Experiment ") in refs.stdout


@pytest.mark.prefect
@pytest.mark.slow
def test_wrong_values_are_refused_by_the_form_or_named_at_once(served: Any) -> None:
    said = served.refused(JUDGE, settings=judge(learning_rate=-1))
    assert "settings.models.judge.build.learning_rate" in said
    assert "-1 is less than or equal to the minimum of 0" in said
    assert "build.learning_rate'. Failure reason: 'fast' is not valid" in served.refused(
        JUDGE, settings=judge(learning_rate="fast")
    )
    assert "'learning_rat' was unexpected" in served.refused(JUDGE, settings=judge(learning_rat=1))
    run = served.ended(served.submit(JUDGE, settings=judge(warmup_steps=50)))
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"] == "the form: models.judge.build: warmup_steps is 50, more than steps (3); lower it"


@pytest.mark.prefect
@pytest.mark.slow
def test_what_is_missing_is_told_in_the_forms_run_before_anything_starts(served: Any) -> None:
    path = served.project / "params.yaml"
    text = path.read_text()
    values = read_yaml(path)
    values["questions"] |= {"kind": "llava", "path": "datasets/a.json", "images": "datasets/images"}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        run = served.ended(served.submit("questions", settings={}))
        other = served.ended(served.submit("questions", settings={"questions": {"seed": 7}}))
    finally:
        path.write_text(text)
    for ended in (run, other):  # in the workspace, and as an experiment
        message = ended["state"]["message"]
        assert ended["state_type"] == "FAILED"
        assert message.startswith(
            "nothing was started, 2 things are missing:\ndata: questions.path: datasets/a.json is not"
        )
        assert "put it there, or correct questions.images (for questions)" in message
        assert message in served.lines(ended["id"])
        assert served.stage_runs(ended["id"]) == []


def checkpoints(served: Any) -> list[Path]:
    return list(served.project.glob(".ril/runs/model@judge/*/step_*/DONE"))


@pytest.mark.prefect
@pytest.mark.slow
def test_cancel_leaves_no_process_and_the_same_values_go_on(served: Any) -> None:
    settings = judge(steps=150)
    before = set(checkpoints(served))  # of runs that other tests have cancelled
    run = served.submit(JUDGE, settings=settings)
    served.until(lambda: set(checkpoints(served)) - before, 150, "no checkpoint")
    workers = served.workers()
    assert len(workers) == 2, "dvc and the stage"
    for process in workers:
        process.suspend()  # else it may be done before the second click is seen
    second = served.submit(JUDGE, settings=settings)  # a second click waits, visibly
    served.until(lambda: "AwaitingConcurrencySlot" in served.states(second), 60, "the second run did not wait")
    for process in workers:
        process.resume()

    clicked = time.monotonic()
    served.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    cancelled = served.ended(run, 60)
    assert cancelled["state_type"] == "CANCELLED", served.lines(run)
    assert time.monotonic() - clicked < 30
    assert [stage["state_type"] for stage in served.stage_runs(run)] == ["CANCELLED"]
    assert "stopped after step" in served.lines(run)
    assert not list((served.project / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*")) or served.workers()

    went_on = served.ended(second)
    assert went_on["state_type"] == "COMPLETED", served.lines(second)
    assert "model@judge: resumes after step" in served.lines(second)
    assert not served.workers()


@pytest.mark.prefect
@pytest.mark.slow
def test_the_pipeline_runs_stages_side_by_side_and_cancel_ends_them_all(served: Any) -> None:
    def stages() -> set[str | None]:
        """Commands do not name the item: DVC does, in the environment."""
        found = set()
        for process in served.workers():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found.add(process.environ().get("DVC_STAGE"))
        return found - {None}

    run = served.submit("pipeline", settings={}, jobs=2)
    served.until(lambda: len(stages()) == 2, 300, "no two stages at a time")
    served.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.ended(run, 120)["state_type"] == "CANCELLED", served.lines(run)
    assert not served.workers()


@pytest.mark.prefect
@pytest.mark.slow
def test_busy_is_waited_for_and_failure_is_not_tried_again(served: Any) -> None:
    """The holder is a process that lives, in DVC's own table of who works on what."""
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "repro", "questions"])
    held = {str(served.project / "data" / "questions"): {"pid": holder.pid, "cmd": "dvc repro questions"}}
    table = served.project / ".dvc" / "tmp" / "rwlock"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"write": held, "read": {}}))
    try:
        run = served.submit("questions", force=True)
        served.until(lambda: served.run(run)["state_name"] == "Waiting", 90, "the run did not wait")
        assert f"held by process {holder.pid}" in served.run(run)["state"]["message"]
    finally:
        holder.kill()
        holder.wait(30)
    assert served.ended(run)["state_type"] == "COMPLETED", served.lines(run)

    failed = served.ended(served.submit("pool", upstream=False))
    assert failed["state_type"] == "FAILED"
    assert "pool" in failed["state"]["message"]
    assert served.lines(failed["id"]).count("Running stage 'pool'") <= 1

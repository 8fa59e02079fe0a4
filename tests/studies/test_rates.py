"""Which value of the sweep an arm gets, the file that says so, and that Git has it before the comparison."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.yaml import ParamsError
from studies.commands import check_same_weights
from studies.power import count_worlds, list_power
from studies.rates import RATES, choose_swept_values, commit_rates, read_rates, resolve_values, write_rates
from studies.records import StudyRecord, write_record
from studies.runs import Planner
from studies.statistics import compute_detectable, minimum_detectable
from studies.study import Study, read_study

Make = Callable[..., StudyRecord]
KEY = "ril.learning_rate"


@pytest.fixture
def study(small_study: dict[str, Any]) -> Study:
    arms = {name: {"title": name} for name in ("a", "b", "c")} | {"long": {"title": "long", "rate_of": "a"}}
    return Study.model_validate(
        {
            **small_study,
            "arms": arms,
            "order": [],
            "differences": [],
            "primary": [["a", "b"], ["a", "c"]],
            "sweep": {KEY: [1e-4, 2e-4, 4e-4]},
            "tuning": [{"world": world, "seed": 1} for world in (0, 1)],
            "seeds": [{"world": world, "seed": 1} for world in range(10, 20)],
        }
    )


def tried(record: Make, arm: str, rate: float, scores: list[float]) -> list[StudyRecord]:
    return [
        record(arm, world, 0.1, purpose="tuning", swept={KEY: rate}, validation={"end": 0.0, "last_two": score})
        for world, score in enumerate(scores)
    ]


def set_identity(project: Path) -> None:
    for key, value in {"user.name": "test", "user.email": "test@localhost"}.items():
        subprocess.run(["git", "config", key, value], cwd=project, check=True, timeout=60)


def commit_file(project: Path, name: str) -> None:
    set_identity(project)
    for words in (["add", name], ["commit", "--quiet", "--only", "--message", "Rates", name]):
        subprocess.run(["git", *words], cwd=project, check=True, timeout=60)


def test_the_best_rate_on_validation_is_chosen_of_equal_ones_the_smaller(study: Study, record: Make) -> None:
    records = [
        *tried(record, "a", 1e-4, [0.5, 0.5]),
        *tried(record, "a", 2e-4, [0.4, 0.7]),
        *tried(record, "a", 4e-4, [0.9]),  # failed on one of the data sets
        *tried(record, "b", 1e-4, [0.5, 0.5]),
        *tried(record, "b", 2e-4, [0.5, 0.5, 0.9]),  # the third data set is none of the sweep
        *tried(record, "c", 2e-4, [0.5]),
    ]
    chosen = choose_swept_values(records, study)
    assert chosen == {"a": {KEY: 2e-4}, "b": {KEY: 1e-4}}
    assert resolve_values(study, chosen) == {**chosen, "long": {KEY: 2e-4}}


def test_the_choice_is_a_file_that_git_has_to_have(study: Study, record: Make, make_study: Callable[..., Path]) -> None:
    project = make_study()
    folder = project / "studies" / "results" / "small"
    with pytest.raises(ParamsError, match=r"rates\.json is missing"):
        read_rates(folder)
    records = [*tried(record, "a", 1e-4, [0.5, 0.25]), *tried(record, "a", 2e-4, [0.25, 0.25])]
    path = write_rates(folder, study, records)
    assert path.name == RATES
    assert read_rates(folder) == {"a": {KEY: 1e-4}}
    written = json.loads(path.read_text())
    assert written["scores"] == {"a": {"0.0001": 0.375, "0.0002": 0.25}}
    assert set(written["runs"]) == {one.name for one in records}
    with pytest.raises(ParamsError, match="The comparison starts when Git has this file"):
        commit_rates(project, path, commit=False)
    set_identity(project)
    (project / "other").write_text("not mine")
    commit_rates(project, path, commit=True)
    commit_rates(project, path, commit=False)
    names = subprocess.run(
        ["git", "show", "--name-only", "--format="], cwd=project, capture_output=True, text=True, check=True, timeout=60
    )
    assert names.stdout.split() == ["studies/results/small/rates.json"]
    write_rates(folder, study, tried(record, "a", 2e-4, [0.5, 0.25]))
    with pytest.raises(ParamsError):
        commit_rates(project, path, commit=False)


def test_power_is_that_of_the_strictest_step_of_holm(study: Study, record: Make) -> None:
    records = [
        *tried(record, "a", 1e-4, [0.50, 0.60]),
        *tried(record, "b", 1e-4, [0.40, 0.44]),
        *tried(record, "b", 2e-4, [0.10, 0.10]),
    ]
    (row,) = list_power(study, records, choose_swept_values(records, study), 0.05)  # c has no records
    assert (row.first, row.second, row.worlds) == ("a", "b", 2)
    assert row.mean == pytest.approx(0.13)
    assert row.deviation == pytest.approx(0.06 / 2**0.5)
    assert row.needed is not None
    assert row.detectable == compute_detectable(row.deviation, 10, 0.05 / 2)
    level = 0.05 / 2
    assert (
        compute_detectable(row.deviation, row.needed, level)
        <= 0.05
        < compute_detectable(row.deviation, row.needed - 1, level)
    )
    assert count_worlds(1.0, 0.001, level) is None
    values = [0.1, 0.2, 0.4]
    assert compute_detectable(0.1527525, 3, 0.05) == pytest.approx(minimum_detectable(values), rel=1e-5)


@pytest.mark.slow
def test_a_frozen_study_stops_between_sweep_and_comparison(
    make_study: Callable[..., Path],
    small_study: dict[str, Any],
    record: Make,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    sweep = {"sweep": {KEY: [1e-4, 2e-4]}, "tuning": [{"world": world, "seed": 1} for world in (8, 9)]}
    project = make_study(frozen=True, primary=[["gad", "warm_start"]], **sweep)
    study = read_study(project, "small")
    for run in Planner(project, study, "small").plan_tuning(list(study.arms), study.tuning):
        score = 0.5 + run.seeds.world / 100 + run.swept[KEY]
        one = record(
            run.arm, run.seeds.world, 0.5, seed=1, purpose="tuning", key=run.key, swept=dict(run.swept),
            validation={"start": 0.1, "end": score, "last_two": score},
        )  # fmt: skip
        write_record(project / "studies/results/small", one)
    run_study = (project, "flows.cli", "experiments", "run", "small")
    code, out, err = call(*run_study)
    assert code == 2, out + err
    assert "the sweep is finished and its choice is in" in err
    assert read_rates(project / "studies/results/small") == {"gad": {KEY: 2e-4}}
    code, out, err = call(*run_study, "--only-sweep")
    assert code == 0, out + err
    assert "started; stages to run" not in out
    code, out, err = call(*run_study, "--only-sweep", "--world", "9", "--dry-run")
    assert code == 0, err
    assert "sweep on validation: 2 runs, 2 finished" in out
    assert "compared: 0 runs" in out
    code, out, err = call(*run_study, "--only-sweep", "--world", "3")
    assert code == 2
    assert "--world 3, but the worlds are 8, 9 (studies/small.yaml)" in err
    code, out, err = call(*run_study, "--dry-run")
    assert code == 0, err
    assert "sweep on validation: 4 runs, 4 finished" in out
    (project / "studies/results/small/tuning/gad-0.0001-w8-s1.json").unlink()  # a run that was stopped
    code, out, err = call(*run_study, "--dry-run")
    assert code == 0, err
    assert "sweep on validation: 4 runs, 3 finished" in out
    code, out, err = call(*run_study, "--only-sweep", "--world", "9")
    assert code == 0, err
    commit_file(project, "studies/results/small/rates.json")
    code, out, err = call(*run_study, "--dry-run")
    assert code == 0, err
    assert "sweep on validation: 0 runs" in out, "the choice is committed, so the comparison needs no more of the sweep"
    (project / "studies/results/small/tuning/gad-0.0002-w9-s1.json").unlink()  # the committed choice has no support
    code, out, err = call(*run_study, "--dry-run")
    assert code == 0, err
    assert "sweep on validation: 4 runs, 2 finished" in out
    code, out, err = call(project, "flows.cli", "experiments", "power", "small")
    assert code == 2
    assert "no two tuning worlds of a primary difference" in err  # the warm start is not tuned


@pytest.mark.slow
def test_arms_and_rates_of_another_study_are_used(
    make_study: Callable[..., Path],
    small_study: dict[str, Any],
    record: Make,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    arms = {**small_study["arms"], "own": {"title": "Own", "params": {"ril": {"objective": "grpo"}}, "rate_of": "gad"}}
    changes = {"take": {"first": ["warm_start", "gad"]}, "rates_of": "first", "arms": arms}
    project = make_study(**changes)
    results = project / "studies" / "results"
    run_study = (project, "flows.cli", "experiments", "run", "small")
    code, out, err = call(*run_study)
    assert code == 2
    assert "results/first/rates.json is missing" in err
    code, out, err = call(*run_study, "--dry-run")
    assert code == 0, err
    assert "compared: 1 runs, 0 finished" in out
    (results / "first").mkdir(parents=True)
    (results / "first" / RATES).write_text(json.dumps({"parameter": KEY, "chosen": {"gad": 3e-4}}))
    study = read_study(project, "small")
    (run,) = Planner(project, study, "small").plan_comparison(["own"], study.seeds, {"own": {KEY: 3e-4}})
    write_record(results / "small", record("own", 3, 0.7, seed=4, key=run.key, swept={KEY: 3e-4}))
    for name, accuracy in (("warm_start", 0.5), ("gad", 0.6)):
        write_record(results / "first", record(name, 3, accuracy, seed=4, study="first"))
        write_record(results / "first", record(name, 5, 0.9, seed=4, study="first"))  # another data set
    code, out, err = call(*run_study)
    assert code == 0, out + err
    assert "1 of 1 runs are in" in out
    page = (results / "small.md").read_text()
    assert "By mean accuracy: Own 70.0" in page
    assert "GAD 60.0" in page
    assert "1 seed on 1 data set" in page
    write_record(results / "first", record("gad", 3, 0.6, seed=4, study="first", code={"ril": "78" * 8}))
    code, out, err = call(project, "flows.cli", "experiments", "report", "small")
    assert code == 2
    assert "ril: records were made by other code, ril of small/compared/own-w3-s4 and of first/compared/gad" in err
    for name, weights in (("warm_start", "one"), ("gad", "another")):
        made = {"stages": {"model@student": "a key"}, "weights": {"model@student": weights}}
        write_record(results / "first", record(name, 3, 0.6, seed=4, study="first", **made))
    code, out, err = call(project, "flows.cli", "experiments", "report", "small")
    assert code == 2
    assert "world 3: model@student of first/compared/gad-w3-s4 and of first/compared/warm_start-w3-s4" in err


def test_runs_of_one_data_set_that_two_kinds_of_machines_made_are_not_compared(record: Make) -> None:
    made = {"stages": {"warm_start": "a key"}, "weights": {"warm_start": "one"}}
    other = {**made, "weights": {"warm_start": "another"}}
    check_same_weights([record("a", 1, 0.5, **made), record("b", 1, 0.5, **made), record("b", 2, 0.5, **other)])
    check_same_weights([record("a", 1, 0.5, **made), record("b", 1, 0.5, **{**other, "stages": {"warm_start": "k"}})])
    with pytest.raises(ParamsError, match=r"world 1: warm_start of small/compared/a-w1-s1 and of .*/b-w1-s1 has other"):
        check_same_weights([record("a", 1, 0.5, **made), record("b", 1, 0.5, **other)])

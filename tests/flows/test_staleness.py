"""A stage is stale exactly when code that it reaches changed; `ril status` says why; `ril accept` takes words as they
are. In a copy of the project whose results are faked and recorded by dvc itself.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc_data.hashfile import hash as hashing
from typer.testing import CliRunner

from flows.cli.main import app
from flows.dvc import staleness
from flows.dvc.repro import DvcFailed
from flows.dvc.staleness import FOLLOWS, NEVER_RUN, STALE, UP_TO_DATE, StageStatus, compare_stages
from stages.config.yaml import read_yaml

FEW = {  # enough of each stage to show everything, and half the time
    "models": {"qwen2_5_vl": None},
    "selection": {"teacher": "internvl3"},
    "teachers": {"qwen2_5_vl": None},
    "pool": {"teachers": ["internvl3"]},
    "evaluations": {"warm_start": None, "qwen2_5_vl": None, "internvl3": None},
}
MODELS = {"model@student", "model@internvl3", "model@judge"}
EVALUATIONS = {"evaluate@base", "evaluate@ril"}
OF_IS_CORRECT = {*MODELS, "verdict@internvl3", "ril", *EVALUATIONS, "report"}


def dvc(project: Path, *arguments: str) -> str:
    """What the dvc command says."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, copy_project: Callable[..., Path]) -> Path:
    """A project with faked results that dvc has recorded, and records of the code that made them."""
    project = copy_project(tmp_path_factory.mktemp("recorded") / "project", FEW)
    with Repo.init(str(project), no_scm=True) as repo:
        for path in [Path(one.fs_path) for one in (*repo.index.outs, *repo.index.deps)]:
            if not path.exists():
                file = path if path.suffix else path / "part"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("{}")
    dvc(project, "commit", "--force")
    before = compare_stages(project, project / ".ril")  # keeps the records
    assert {one.state for one in before.values()} == {UP_TO_DATE}
    return project


@pytest.fixture
def project(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(recorded, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("RIL_STORE", raising=False)
    return tmp_path / "project"


def found(project: Path) -> dict[str, StageStatus]:
    return compare_stages(project, project / ".ril")


def ril(*arguments: str) -> str:
    """What the ril command prints; it must end well."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def edit(project: Path, file: str, before: str, after: str) -> None:
    text = (project / file).read_text()
    assert text.count(before) == 1, f"{file} holds {before!r} {text.count(before)} times"
    (project / file).write_text(text.replace(before, after))


# --- the edits --------------------------------------------------------------------------------------------------------


def add_benchmark(project: Path) -> None:
    specs = project / "stages" / "benchmarks" / "specs"
    shutil.copy(specs / "ai2d.py", specs / "scienceqa.py")


def comment_in_the_loss(project: Path) -> None:
    with (project / "stages" / "policy" / "loss.py").open("a") as file:
        file.write("# another comment\n")


def word_of_a_help_text(project: Path) -> None:
    file = project / "stages" / "config" / "teacher.py"
    text = file.read_text()
    assert 'description="' in text
    file.write_text(text.replace('description="', 'description="In other words: ', 1))


def comment_in_is_correct(project: Path) -> None:
    edit(project, "stages/corpora/scoring.py", "def is_correct(", "# another comment\ndef is_correct(")


def logic_of_is_correct(project: Path) -> None:
    edit(project, "stages/corpora/scoring.py", "_read_number(said) == number", "number == _read_number(said)")


EDITS: dict[Callable[[Path], None], tuple[set[str], list[str]]] = {  # who is stale, and which definitions changed
    add_benchmark: ({*EVALUATIONS, "report"}, ["stages/benchmarks/specs/scienceqa.py added"]),
    comment_in_the_loss: ({"ril"}, []),
    word_of_a_help_text: ({"teacher@internvl3", "report"}, []),
    comment_in_is_correct: (OF_IS_CORRECT, []),
    logic_of_is_correct: (OF_IS_CORRECT, ["stages/corpora/scoring.py::is_correct changed"]),
}


@pytest.mark.parametrize("make_edit", EDITS)
def test_exactly_the_stages_that_reach_an_edit_are_stale(project: Path, make_edit: Callable[[Path], None]) -> None:
    expected, changed = EDITS[make_edit]
    make_edit(project)
    after = found(project)
    assert {name for name, one in after.items() if one.state == STALE} == expected
    assert {tuple(after[name].changed) for name in expected} == {tuple(changed)}
    assert {after[name].words_only for name in expected} == {not changed}
    followers = {name for name, one in after.items() if one.state == FOLLOWS}
    assert all(set(after[name].follows) <= expected for name in followers)
    assert ("report" in followers) == ("report" not in expected)


@pytest.mark.slow
def test_a_changed_reward_function_makes_ril_stale_and_nothing_else(project: Path) -> None:
    """Through DVC's own status, from a run whose parameters name the function."""
    (project / "rewards").mkdir()
    (project / "rewards" / "unit.py").write_text("def check(answer):\n    return 1.0\n")
    (project / "rewards" / "notes.py").write_text("")
    values = read_yaml(project / "params.yaml")
    values["ril"] |= {"reward_code": "rewards/unit.py", "rewards": [{"use": "rewards/unit.py:check"}]}
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert set(json.loads(dvc(project, "status", "--json"))) == {"ril", "report"}, "ril.rewards is a parameter of both"
    dvc(project, "commit", "--force")
    assert json.loads(dvc(project, "status", "--json")) == {}
    (project / "rewards" / "notes.py").write_text("# a file beside it")
    assert json.loads(dvc(project, "status", "--json")) == {}
    (project / "rewards" / "unit.py").write_text("def check(answer):\n    return 2.0\n")
    assert json.loads(dvc(project, "status", "--json")) == {"ril": [{"changed deps": {"rewards/unit.py": "modified"}}]}
    after = found(project)
    assert {name for name, one in after.items() if one.state == STALE} == {"ril"}
    followers = {name for name, one in after.items() if one.state == FOLLOWS}
    assert followers == {"evaluate@ril", "report"}


@pytest.mark.slow
def test_dvc_agrees_on_what_is_stale_and_accepting_words_leaves_it_nothing_to_do(project: Path) -> None:
    comment_in_is_correct(project)
    assert set(json.loads(dvc(project, "status", "--json"))) == OF_IS_CORRECT
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    said = ril("accept", "--all")
    assert all(f"{name}: accepted, words only" in said for name in OF_IS_CORRECT)
    assert dvc(project, "repro").splitlines()[-1] == "Data and pipelines are up to date."
    after = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for name, entry in lock.items():
        assert without_code(after[name]) == without_code(entry), name
        assert (after[name] != entry) == (name in OF_IS_CORRECT)
    assert not list(project.rglob("accepted.json"))


def test_a_command_that_only_lacks_its_item_is_a_change_of_words(project: Path) -> None:
    """Until ids were kept from the shell, commands ended in them."""
    name = "teacher@internvl3"
    edit(
        project, "dvc.lock", "cmd: exec python -m flows.run teacher", "cmd: exec python -m flows.run teacher internvl3"
    )
    assert [one.name for one in found(project).values() if one.words_only] == [name]
    assert f"{name}: accepted, words only" in ril("accept", "--all")
    assert {one.state for one in found(project).values()} == {UP_TO_DATE}
    edit(project, "dvc.lock", "cmd: exec python -m flows.run teacher", "cmd: exec python -m flows.run teacher other")
    assert found(project)[name].command


def without_code(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "deps": [one for one in entry["deps"] if not one["path"].startswith("stages/")]}


def test_no_data_is_read_that_dvc_has_hashed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comment_in_the_loss(project)
    found(project)  # in a copy all files are new to dvc
    read: list[str] = []
    hash_file = hashing.file_md5

    def note(path: str, *arguments: Any, **options: Any) -> str:
        if path.startswith(f"{project}/data/"):
            read.append(path)
        return str(hash_file(path, *arguments, **options))

    monkeypatch.setattr(hashing, "file_md5", note)
    found(project)
    ril("accept", "ril")
    assert not read
    (project / "data" / "pool" / "part").write_text("other")
    found(project)
    assert read == [str(project / "data" / "pool" / "part")], "what dvc reads is seen here"


def test_explain_says_what_would_run_and_why_and_runs_nothing(project: Path) -> None:
    assert ril("run", "--explain").splitlines() == ["0 of 15 stages would run"]
    edit(project, "params.yaml", "truncated: drop", "truncated: keep")
    lines = ril("run", "--explain", "ril").splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")][:-1] == ["pool", "discriminator", "ril"]
    assert "    parameter  pool.truncated: drop -> keep" in lines
    assert "follows pool" in lines[-2]
    assert lines[-1].startswith("3 of ")
    assert ril("run", "--explain", "--only", "ril").splitlines()[-1] == "1 of 1 stages would run"
    assert ril("run", "--explain", "--only", "--force", "questions").splitlines() == [
        "questions  up to date",
        "1 of 1 stages would run (--force)",
    ]
    assert not (project / ".ril" / "logs").exists()


@pytest.mark.slow
def test_status_names_function_and_stage_and_accept_refuses(project: Path) -> None:
    logic_of_is_correct(project)
    lines = ril("status", "verdict", "ril", "pool").splitlines()
    told = "    code       stages/corpora/scoring.py: is_correct changed"
    assert lines == [
        "verdict@internvl3  stale",
        told,
        "pool               follows model@internvl3, model@student, verdict@internvl3",
        "ril                stale",
        told,
        "2 stale, 1 follows",
    ]
    lock = (project / "dvc.lock").read_bytes()
    with pytest.raises(DvcFailed) as error:
        ril("accept", "ril", "verdict@internvl3")
    assert [line.split(". ")[0] for line in str(error.value).splitlines()] == [
        f"{name}: not only words changed: stages/corpora/scoring.py::is_correct changed"
        for name in ("verdict@internvl3", "ril")
    ]
    assert ril("accept", "--all") == "nothing to accept\n"
    assert (project / "dvc.lock").read_bytes() == lock
    assert not list(project.rglob("accepted.json"))


@pytest.mark.slow
def test_a_reason_is_kept_where_the_report_depends_on_it(project: Path) -> None:
    logic_of_is_correct(project)
    reason = "no reference of ours is written in two ways"
    said = ril("accept", "ril", "verdict", "--because", reason)
    assert "ril: accepted, stages/corpora/scoring.py::is_correct changed" in said
    kept = json.loads((project / "reports" / "ril" / "accepted.json").read_text())["accepted"]
    assert [(one["because"], one["changes"]) for one in kept] == [
        (reason, ["stages/corpora/scoring.py::is_correct changed"])
    ]
    assert (project / "reports" / "verdict" / "internvl3" / "accepted.json").exists()
    after = found(project)
    assert {after[name].state for name in ("ril", "verdict@internvl3")} == {FOLLOWS}
    assert {one.path for one in after["report"].inputs} == {"reports/ril", "reports/verdict"}
    comment_in_is_correct(project)
    assert found(project)["ril"].words_only
    ril("accept", "ril")
    assert json.loads((project / "reports" / "ril" / "accepted.json").read_text())["accepted"] == kept


# --- other reasons ----------------------------------------------------------------------------------------------------


def test_parameters_are_shown_with_both_values_and_not_accepted(project: Path) -> None:
    values = read_yaml(project / "params.yaml")
    values["ril"]["kl_weight"] = 0.02
    values["pool"]["teachers"] = ["internvl3", "other"]
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    comment_in_the_loss(project)
    after = found(project)
    assert {name for name, one in after.items() if one.state == STALE} == {"pool", "ril", "report"}
    assert [str(one) for one in after["ril"].parameters] == ["ril.kl_weight: 0.01 -> 0.02"]
    assert [str(one) for one in after["pool"].parameters] == ["pool.teachers: ['internvl3'] -> ['internvl3', 'other']"]
    with pytest.raises(DvcFailed, match=r"ril: not only its code changed: ril.kl_weight: 0.01 -> 0.02"):
        ril("accept", "ril", "--because", "it hardly matters")


def test_inputs_and_results_that_changed_are_named_with_their_maker(project: Path) -> None:
    (project / "data" / "pool" / "part").unlink()
    (project / "data" / "pool" / "other").write_text("2")
    shutil.rmtree(project / "data" / "questions")
    after = found(project)
    assert after["pool"].outs == {"data/pool": "modified"}
    assert [str(one) for one in after["discriminator"].inputs] == [
        "data/pool changed; made by pool",
        "data/questions missing; made by questions",
    ]
    with pytest.raises(DvcFailed, match="pool: not only its code changed: data/pool modified"):
        ril("accept", "pool")


def test_a_stage_that_never_ran_and_one_that_follows_it(project: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    del lock["stages"]["rollout"]
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    after = found(project)
    assert after["rollout"].state == NEVER_RUN
    assert (after["discriminator"].state, after["discriminator"].follows) == (FOLLOWS, ["rollout"])
    with pytest.raises(DvcFailed, match="rollout: has never run"):
        ril("accept", "rollout")
    (project / "dvc.lock").unlink()
    assert {one.state for one in found(project).values()} == {NEVER_RUN}


@pytest.mark.slow
def test_without_a_record_files_are_named_and_words_are_not_proven(project: Path) -> None:
    shutil.rmtree(project / ".ril" / "code")
    comment_in_the_loss(project)
    one = found(project)["ril"]
    assert one.code is None
    assert not one.words_only
    assert one.changed == ["stages/policy changed (no record of the code before, so what changed in it is not known)"]
    with pytest.raises(DvcFailed, match="ril: not only words changed: stages/policy changed"):
        ril("accept", "ril")
    ril("accept", "ril", "--because", "a comment")
    assert found(project)["ril"].state == UP_TO_DATE


@pytest.mark.slow
def test_a_record_of_another_result_than_that_of_dvc_lock_is_not_used(project: Path) -> None:
    """As after a run of older code that DVC restored from its run cache: code.json is still that of the newer one."""
    logic_of_is_correct(project)
    ril("accept", "ril", "--because", "for now")
    record = (project / "reports" / "ril" / "code.json").read_text()
    (project / "reports" / "ril" / "code.json").unlink()
    edit(project, "stages/corpora/scoring.py", "number == _read_number(said)", "_read_number(said) == number")
    ril("accept", "ril", "--because", "and back")
    (project / "reports" / "ril" / "code.json").write_text(record)
    assert found(project)["ril"].state == UP_TO_DATE
    comment_in_is_correct(project)
    assert found(project)["ril"].words_only, "the copy in the store is of the code that dvc.lock has"


@pytest.mark.slow
def test_a_list_of_the_same_code_in_dvc_yaml_is_no_change_of_code(project: Path) -> None:
    files = [f"- stages/policy/{path.name}" for path in sorted((project / "stages" / "policy").glob("*.py"))]
    edit(project, "dvc.yaml", "      - stages/policy\n", "".join(f"      {file}\n" for file in files))
    assert ril("accept", "ril").startswith("ril: accepted, words only")
    assert found(project)["ril"].state == UP_TO_DATE


@pytest.mark.slow
def test_code_that_dvc_yaml_does_not_list_is_named(project: Path) -> None:
    edit(project, "dvc.yaml", "      - stages/policy\n", "")
    assert "dvc.yaml does not list stages/policy/" in ril("status", "ril")
    (one,) = json.loads(ril("status", "ril", "--json"))
    assert (one["name"], one["state"], one["words_only"]) == ("ril", UP_TO_DATE, False)


# --- what can't be answered -------------------------------------------------------------------------------------------


def test_a_name_that_is_no_stage_is_answered_with_the_list(project: Path) -> None:
    with pytest.raises(DvcFailed, match="no stage 'rill'; stages: model@student, "):
        ril("status", "rill")


def test_a_project_without_dvc_is_a_line(project: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    shutil.rmtree(project / ".dvc")
    code, _, err = call(project, "flows.cli", "status")
    assert (code, err.splitlines()) == (2, ["error: DVC is not set up in this folder; run: git init && dvc init"])


def test_code_that_python_can_not_read_is_a_line(project: Path) -> None:
    with (project / "stages" / "policy" / "loss.py").open("a") as file:
        file.write("def broken(:\n")
    with pytest.raises(DvcFailed, match=r"stages/policy/loss.py, line \d+: .*; Python can't read it"):
        found(project)


def test_a_file_with_marks_of_a_conflict_is_a_line(project: Path) -> None:
    record = project / "reports" / "ril" / "code.json"
    record.write_text('{\n<<<<<<< HEAD\n"code": {}')
    with pytest.raises(DvcFailed, match=r"reports/ril/code.json is no record of code \(.*\); restore it or delete it"):
        found(project)
    record.unlink()
    with (project / "dvc.lock").open("a") as file:
        file.write("<<<<<<< HEAD\n")
    with pytest.raises(DvcFailed, match=r"dvc\.lock"):
        found(project)


def test_a_dvc_yaml_without_stages_is_a_line_and_one_stage_less_is_no_fault(project: Path) -> None:
    text = (project / "dvc.yaml").read_text()
    kept, _, _ = text.partition("\n  report:")
    (project / "dvc.yaml").write_text(kept + "\n")
    assert "report " not in ril("status")
    (project / "dvc.yaml").write_text("")
    with pytest.raises(DvcFailed, match=r"dvc\.yaml has no stages; restore it with"):
        ril("status")


@pytest.mark.slow
def test_another_dvc_that_does_not_let_go_is_a_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness, "LOCK_SECONDS", 0.0)
    with staleness.open_project(project), pytest.raises(DvcFailed, match="another dvc has held this project"):
        found(project)


def test_a_stage_that_runs_is_not_accepted(project: Path) -> None:
    comment_in_the_loss(project)
    running = {"pid": 1, "cmd": "dvc repro ril"}
    (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {str(project / "data" / "ril"): running}}))
    with pytest.raises(DvcFailed, match="data/ril' is busy, it is being blocked by"):
        ril("accept", "ril")

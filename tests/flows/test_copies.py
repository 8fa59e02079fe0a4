"""Relative paths in the copies in which DVC runs experiments: users' data, checkpoints, the store."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.copies import AbsentInCopy, check_copies, list_absences
from flows.dvc.experiments import find_experiment_commit
from flows.environment import find_project, resolve_folders, store_folder
from flows.jobs import list_needed_jobs
from flows.ui.plan import make_plan
from stages.config.params import load_params

Made = Callable[..., Path]
SPLITS = {"warm_start": 1, "imitation": 1, "validation": 1, "test": 1}
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


def git(folder: Path, *words: str) -> None:
    subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, timeout=60)


def dvc(folder: Path, *words: str, **variables: str) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("DVC_STAGE", "DVC_ROOT")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )
    return done.returncode, done.stdout + done.stderr


def write_questions(folder: Path) -> None:
    """Four questions with an image each, in the format of LLaVA."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": str(number)}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "q.json").write_text(json.dumps(rows))


@pytest.fixture
def make_checkout(make_project: Made, root: Path) -> Made:
    """A project in Git and DVC whose questions are at `place`, relative to its folder."""

    def make(place: str, values: dict[str, Any] | None = None) -> Path:
        block = {"kind": "llava", "path": f"{place}/q.json", "images": f"{place}/images", "splits": SPLITS}
        project = make_project({"questions": block, **(values or {})})
        shutil.copytree(root / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
        shutil.copy(root / ".gitignore", project)
        git(project, "init", "-q")
        git(project, "add", "-A")
        git(project, "commit", "-qm", "project")
        return project

    return make


def plan(project: Path) -> object:
    return make_plan(project, "questions", {"questions": {"max_characters": 15000}})


@pytest.mark.parametrize("place", ["datasets", "../data", "mine/deep/datasets", "ignored"])
def test_data_that_a_copy_lacks_is_named_with_the_remedy(make_checkout: Made, place: str) -> None:
    project = make_checkout(place)
    write_questions(project / place)
    if place == "ignored":
        (project / ".gitignore").write_text("/ignored/\n")
        git(project, "commit", "-qam", "ignored")
    with pytest.raises(AbsentInCopy) as error:
        plan(project)
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == [f"{place}/q.json", f"{place}/images"]
    assert all(str((project / place).resolve()) in line for line in lines)
    assert all(("dvc add" in line) == (place != "../data") for line in lines)
    params = load_params(project / "params.yaml")
    check_copies(project, list_needed_jobs(project, params, ["model@judge"]))  # does not read them


def test_data_that_a_copy_has_is_found(make_checkout: Made) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    git(project, "add", "datasets")
    plan(project)
    git(project, "rm", "-rq", "--cached", "datasets")
    assert dvc(project, "add", "-q", "datasets")[0] == 0
    with pytest.raises(AbsentInCopy, match=r"datasets\.dvc, which Git does not track"):
        plan(project)
    git(project, "add", "datasets.dvc")
    plan(project)


def test_a_single_file_that_nobody_tracks_is_named(make_checkout: Made) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    git(project, "add", "datasets")
    (project / "datasets" / "images" / "new.png").touch()
    with pytest.raises(AbsentInCopy, match=r"datasets/images/new\.png"):
        plan(project)


@pytest.mark.parametrize("target", ["absolute", "relative"])
@pytest.mark.parametrize("tracked", [True, False])
def test_links_to_data_are_followed(make_checkout: Made, tmp_path: Path, target: str, tracked: bool) -> None:
    project = make_checkout("datasets")
    write_questions(tmp_path / "elsewhere")
    (project / "datasets").symlink_to(tmp_path / "elsewhere" if target == "absolute" else "../elsewhere")
    if tracked:
        git(project, "add", "datasets")
    if tracked and target == "absolute":
        plan(project)
        return
    with pytest.raises(AbsentInCopy, match="outside the project" if tracked else "goes through the link datasets"):
        plan(project)


def test_a_tracked_link_out_of_the_project_is_named(make_checkout: Made, tmp_path: Path) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    (tmp_path / "far.png").touch()
    (project / "datasets" / "images" / "far.png").symlink_to("../../../far.png")
    git(project, "add", "datasets")
    with pytest.raises(AbsentInCopy, match="leads out of the project"):
        plan(project)


def test_an_absolute_path_is_the_same_everywhere(make_checkout: Made, tmp_path: Path) -> None:
    project = make_checkout(str(tmp_path / "elsewhere"))
    write_questions(tmp_path / "elsewhere")
    plan(project)


def test_a_stage_in_a_copy_is_refused_before_it_starts(make_checkout: Made) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    code, said = dvc(project, "exp", "run", "--temp", "-n", "one", "-S", "seed=5", "model@judge")
    assert code != 0
    assert "datasets/q.json of stage questions is not in this experiment's copy" in said
    assert f"give its absolute path in params.yaml ({project}/datasets/q.json)" in said
    assert "Traceback" not in said


def test_the_workspace_says_what_experiments_would_lack(make_checkout: Made) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    code, said = dvc(project, "repro", "questions")
    assert code == 0, said
    assert "note: datasets/q.json of stage questions is not tracked by Git or DVC" in said
    assert dvc(project, "add", "-q", "datasets")[0] == 0
    git(project, "add", "-A")
    code, said = dvc(project, "repro", "--force", "questions")
    assert code == 0, said
    assert "note:" not in said


@pytest.mark.slow
@pytest.mark.parametrize("queue", [False, True])
def test_the_store_of_an_experiment_is_that_of_the_project(make_checkout: Made, tmp_path: Path, queue: bool) -> None:
    project = make_checkout("datasets")
    write_questions(project / "datasets")
    git(project, "add", "-A")
    words = ("-n", "one", "-S", "+questions.max_reject_share=0.02", "questions")
    store = {"RIL_STORE": "../shared/ril"}
    if queue:
        assert dvc(project, "exp", "run", "--queue", *words, **store)[0] == 0
        code, said = dvc(project, "exp", "run", "--run-all", **store)
    else:
        code, said = dvc(project, "exp", "run", "--temp", *words, **store)
    assert code == 0, said
    assert find_experiment_commit(project, "one") is not None
    assert (tmp_path / "shared" / "ril" / "code").is_dir()  # records of code, which every stage leaves there
    assert not list((project / ".dvc").rglob("shared"))


def test_the_checkpoint_of_an_experiment_is_that_of_the_project(make_checkout: Made, tmp_path: Path) -> None:
    given = {"family": "qwen2_5_vl", "build": None, "path": "../checkpoint"}
    project = make_checkout("datasets", {"models": {"student": given}})
    write_questions(project / "datasets")
    git(project, "add", "-A")
    code, said = dvc(project, "exp", "run", "--temp", "-n", "one", "-S", "seed=5", "model@student")
    assert code != 0
    assert f"models.student.path: {tmp_path}/checkpoint is no folder; put the checkpoint there" in said


def test_the_project_of_a_copy_is_found_by_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    assert find_project(copy) == tmp_path
    assert find_project(copy.parents[1] / "tmp2") == tmp_path
    assert find_project(tmp_path) == tmp_path
    monkeypatch.setenv("RIL_STORE", "../shared/ril")
    assert store_folder(copy).resolve() == store_folder(tmp_path).resolve() == tmp_path.parent / "shared" / "ril"
    monkeypatch.setenv("RIL_STORE", "")
    assert store_folder(copy) == tmp_path / ".ril"


def test_relative_folders_of_libraries_become_those_of_the_project() -> None:
    given = {"HF_HOME": "../hub", "RIL_STORE": "/far/store", "XDG_CACHE_HOME": "", "TORCH_HOME": "~/torch"}
    assert resolve_folders(given, Path("/home/one/project")) == {"HF_HOME": "/home/one/hub"}


def test_targets_need_the_stages_before_them(root: Path) -> None:
    params = load_params(root / "params.yaml")
    names = [job.name for job in list_needed_jobs(root, params, ["teacher"])]
    models = ["model@student", "model@qwen2_5_vl", "model@internvl3"]
    assert names == [*models, "questions", "selection", "teacher@qwen2_5_vl", "teacher@internvl3"]
    assert len(list_needed_jobs(root, params)) == len(list_needed_jobs(root, params, ["report"]))
    assert list_absences(root, list_needed_jobs(root, params)) == []  # the default pipeline reads no users' files
    check_copies(root, [])

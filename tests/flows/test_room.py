"""Full and read-only disks: found before a stage starts, one line, and no result that is called recorded is lost."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

from flows.dvc import repro
from flows.dvc.cache import Cache, list_lost_outs, read_cache
from flows.dvc.experiments import find_experiment_commit
from flows.lockfile import read_locked_stages
from flows.room import explain_write_error

Call = Callable[..., tuple[int, str, str]]
PIPELINE = """
stages:
  small:
    cmd: mkdir -p data/small && echo ${x} > data/small/a && head -c ${bytes} /dev/zero > data/small/b
    params: [x, bytes]
    outs: [data/small]
  next:
    cmd: mkdir -p data && cp data/small/a data/next
    deps: [data/small]
    outs: [data/next]
"""
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.fixture
def repo(tmp_path: Path, root: Path) -> Path:
    """A small repository with the project's configuration of DVC."""
    folder = tmp_path / "repo"
    shutil.copytree(root / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("x: 1\nbytes: 1000\n")
    (folder / ".gitignore").write_text("/data/\n/.ril/\n/small-disk/\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "repo"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, for whoever may mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, timeout=60
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small disk can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=60)


def use_cache(repo: Path, folder: Path) -> None:
    (repo / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {folder}\n")


def test_results_are_links_into_the_cache(repo: Path) -> None:
    assert repro.run_repro(repo, output=StringIO()) == 0
    status = (repo / "data" / "small" / "b").stat()
    assert status.st_nlink == 2
    assert status.st_mode & 0o222 == 0


def test_a_result_that_did_not_reach_the_cache_is_an_error_until_it_does(repo: Path, small_disk: Path) -> None:
    use_cache(repo, small_disk)
    (repo / "params.yaml").write_text("x: 1\nbytes: 3000000\n")
    said = StringIO()
    assert repro.run_repro(repo, repro.Targets(["small"]), output=said) == 1
    assert said.getvalue().splitlines()[-1].startswith("ERROR: data/small is not in DVC's cache")
    assert list_lost_outs(repo, read_locked_stages(repo)) == ["data/small"]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True, timeout=60)
    assert repro.run_repro(repo, output=StringIO()) == 0
    stages = read_locked_stages(repo)
    assert list_lost_outs(repo, stages) == []
    (out,) = stages["next"]["outs"]
    read_cache(repo).find_file(out["md5"]).unlink()
    assert list_lost_outs(repo, stages, ["small"]) == ["data/small"]  # one of its files is the other result
    assert set(list_lost_outs(repo, stages, ["next"])) == {"data/small", "data/next"}  # what it was made from, too


def test_an_experiment_whose_results_are_lost_has_failed(repo: Path, small_disk: Path) -> None:
    use_cache(repo, small_disk / "cache")
    assert repro.run_repro(repo, output=StringIO()) == 0
    said = StringIO()
    code = repro.run_experiment(repo, "large", ["bytes=3000000"], repro.Targets(["small"]), output=said)
    assert "failed to transfer" in said.getvalue()  # DVC's own word, after which it ends with 0
    assert code == 1
    assert said.getvalue().splitlines()[-1].startswith("ERROR: data/small is not in DVC's cache")
    assert find_experiment_commit(repo, "large") is None
    assert (repo / "data" / "small" / "b").stat().st_size == 1000


@pytest.mark.slow
def test_a_stage_whose_result_does_not_fit_fails_and_keeps_it(
    make_project: Callable[..., Path], root: Path, call: Call, small_disk: Path
) -> None:
    splits = {"warm_start": 600, "imitation": 4, "validation": 2, "test": 4}
    project = make_project({"questions": {"splits": splits}})
    shutil.copytree(root / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
    shutil.copy(root / ".gitignore", project)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "project"]):
        subprocess.run([*GIT, *words], cwd=project, check=True, timeout=60)
    use_cache(project, small_disk)
    code, _, said = call(project, "dvc", "exp", "run", "--temp", "-n", "one", "questions")
    assert code != 0
    assert "can't take data/questions" in said
    assert "Traceback" not in said
    assert list((project / ".dvc" / "tmp" / "kept" / "one" / "data" / "questions").rglob("*.parquet"))
    assert find_experiment_commit(project, "one") is None
    code, _, said = call(project, "dvc", "repro", "questions")
    assert code != 0
    assert f"the result is kept in {project}/data/questions" in said
    (small_disk / "rest").write_bytes(bytes(1_500_000))
    code, _, said = call(project, "dvc", "repro", "questions")
    assert f"1 thing is missing:\nfolder: the disk of {small_disk} is full" in said
    assert "Traceback" not in said


def test_a_read_only_folder_is_named_before_the_stage_starts(
    make_project: Callable[..., Path], call: Call, small_disk: Path
) -> None:
    project = make_project()
    (project / "data").symlink_to(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=60)
    code, _, said = call(project, "flows.run", "questions")
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: {project}/data can't be written")
    code, _, said = call(project, "flows.run", "questions", RIL_STORE=str(small_disk / "store"))
    assert code == 2
    assert f"error: {small_disk} can't be written" in said
    assert "Traceback" not in said


def test_errors_of_writing_are_one_line() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert explain_write_error(full) == "no space left on the disk of /data/x; make room and run it again"
    wrapped = RuntimeError("safetensors: I/O error: No space left on device (os error 28)")
    outer = ValueError("handle is closed")
    outer.__context__ = wrapped
    assert explain_write_error(outer).startswith("no space left on the disk; ")
    assert "/data/y: Read-only file system" in explain_write_error(
        OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/y")
    )
    assert explain_write_error(ValueError("something else")) == ""
    assert explain_write_error(None) == ""


@pytest.mark.parametrize(
    ("text", "folder", "moves"),
    [
        ("", ".dvc/cache", False),
        ('[cache]\n    dir = ../shared\n    type = "hardlink,copy"\n', "shared", True),
        ("[cache]\n    dir = /far/cache\n    type = reflink, hardlink\n", "/far/cache", False),
    ],
)
def test_the_cache_is_where_dvc_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, folder: str, moves: bool
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "system"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[cache]\n    type = copy\n")
    (tmp_path / ".dvc" / "config.local").write_text(text)
    found = read_cache(tmp_path)
    assert isinstance(found, Cache)
    assert found.folder == tmp_path / folder
    assert found.moves == moves


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o002, 0o775, 0o664), (0o077, 0o700, 0o600)])
def test_files_have_the_modes_that_the_user_asked_for(
    make_project: Callable[..., Path], tmp_path: Path, umask: int, folder: int, file: int
) -> None:
    project = make_project()
    before = set(project.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(project), "RIL_STORE": str(tmp_path / "store")}
    environment = {name: value for name, value in environment.items() if name not in ("DVC_STAGE", "DVC_ROOT")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # Python gives bytecode the mode of its source
    words = [sys.executable, "-m", "flows.run", "questions"]
    subprocess.run(words, cwd=project, env=environment, umask=umask, check=True, capture_output=True, timeout=120)
    made = set(project.rglob("*")) - before
    wrong = [path for path in made if path.lstat().st_mode & 0o777 != (folder if path.is_dir() else file)]
    assert made
    assert not wrong

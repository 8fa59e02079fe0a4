"""Experiments whose runner was killed are named, and their copies removed by the next run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from flows.dvc import repro
from flows.dvc.orphans import hold_copy, list_kept_results, list_orphans, remove_orphans

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
PIPELINE = """
stages:
  slow:
    cmd: touch ${started} && sleep ${seconds} && echo done > out
    params: [seconds]
    outs: [out]
"""


@pytest.fixture
def repo(tmp_path: Path, root: Path) -> Path:
    """A repository with one stage, which waits."""
    folder = tmp_path / "repo"
    shutil.copytree(root / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text(f"seconds: 0\nstarted: {tmp_path}/started\n")
    (folder / ".gitignore").write_text("/out\n/.ril/\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "repo"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True, timeout=60)
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_experiment_is_named_and_its_copy_removed(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-n", "killed", "-S", "seconds=100"]
    dvc = subprocess.Popen(command, cwd=repo, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "started").exists)
    assert list_orphans(repo) == []  # it runs
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.wait(30)
    wait_for(lambda: list_orphans(repo))  # the stage, which was killed with it, may still be ending
    (orphan,) = list_orphans(repo)
    assert (orphan.name, orphan.here) == ("killed", True)
    assert str(orphan).startswith("experiment killed: its run was killed; ")
    said = StringIO()
    assert repro.run_experiment(repo, "next", ["seconds=0.1"], output=said) == 0, said.getvalue()
    assert "removed the copy of experiment killed, whose run was killed" in said.getvalue()
    assert not orphan.folder.exists()
    assert list_orphans(repo) == []
    assert not list((repo / ".dvc" / "tmp" / "exps" / "run").glob("*/*killed*"))


def test_a_copy_is_left_alone_while_a_stage_holds_it(repo: Path) -> None:
    copy = repo / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    (copy / ".dvc" / "tmp").mkdir(parents=True)
    with hold_copy(copy):
        assert list_orphans(repo) == []
    assert [orphan.folder for orphan in list_orphans(repo)] == [copy]
    copy.joinpath(".dvc", "tmp", "ril-stage.lock").write_text("far-machine 12")
    (orphan,) = list_orphans(repo)
    assert not orphan.here
    assert "far-machine" in str(orphan)
    assert remove_orphans(repo) == []
    assert copy.exists()
    copy.joinpath(".dvc", "tmp", "ril-stage.lock").write_text(f"{socket.gethostname()} 12")
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=copy, stdin=subprocess.PIPE) as process:
        assert list_orphans(repo) == []  # a process stands in it
        process.communicate(b"\n", timeout=30)
    assert len(remove_orphans(repo)) == 1
    assert not copy.exists()


def test_a_note_that_leads_elsewhere_removes_nothing(repo: Path, tmp_path: Path) -> None:
    note = repo / ".dvc" / "tmp" / "exps" / "run" / "1" / "1.run"
    note.parent.mkdir(parents=True)
    for text in ("", "[1]", "{", json.dumps({"root_dir": str(tmp_path), "name": "far"})):
        note.write_text(text)
        assert list_orphans(repo) == []
        assert remove_orphans(repo) == []
    assert tmp_path.exists()


def test_an_experiment_that_was_never_started_does_not_take_the_place_of_the_next(repo: Path) -> None:
    dvc = [sys.executable, "-m", "dvc", "exp", "run", "--queue", "-n", "first", "-S", "seconds=0.2"]
    subprocess.run(dvc, cwd=repo, check=True, capture_output=True, timeout=90)
    queued = subprocess.run(["git", "rev-parse", "refs/exps/celery/stash"], cwd=repo, capture_output=True, text=True)
    subprocess.run(
        ["git", "update-ref", "--create-reflog", "refs/exps/stash", queued.stdout.strip()], cwd=repo, check=True
    )
    said = StringIO()
    assert repro.run_experiment(repo, "second", ["seconds=0.1"], output=said) == 0, said.getvalue()
    assert "removed an experiment that was killed before it had a copy" in said.getvalue()


def test_results_that_did_not_fit_are_listed(repo: Path) -> None:
    assert list_kept_results(repo) == []
    (repo / ".dvc" / "tmp" / "kept" / "large" / "data").mkdir(parents=True)
    assert [folder.name for folder in list_kept_results(repo)] == ["large"]

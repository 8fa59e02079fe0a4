"""DVC's table of who uses which outs, after processes that were killed. DVC itself judges what is left."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.rwlock import rwlock

from flows.dvc.dead_entries import remove_dead_entries


class LocalFs:
    """What DVC's lock asks of a file system."""

    join = staticmethod(os.path.join)
    open = staticmethod(open)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def dvc(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, in the project's folder, with the arguments of a dvc."""
    words = [sys.executable, "-c", "import time; time.sleep(300)", "dvc", "repro", "ril"]
    process = subprocess.Popen(words, cwd=tmp_path)
    yield process
    process.kill()
    process.wait(30)


def start_and_kill() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    return process.pid


def lock_out(root: Path, out: str) -> None:
    with rwlock(str(root / ".dvc" / "tmp"), LocalFs, "dvc repro", [], [str(root / out)], False):  # type: ignore[no-untyped-call]
        pass


def entries(pid: int, cmd: str = "dvc repro ril") -> dict[str, Any]:
    entry = {"pid": pid, "cmd": cmd}
    return {"write": {"/p/data/ril": entry}, "read": {"/p/params.yaml": [entry], "/p/stages": [entry]}}


def test_entries_of_the_dead_go_and_those_of_the_living_stay(table: Path, dvc: subprocess.Popen[bytes]) -> None:
    living, dead = entries(dvc.pid), entries(start_and_kill())
    table.write_text(
        json.dumps(
            {
                "write": {**living["write"], "/p/data/pool": dead["write"]["/p/data/ril"]},
                "read": {
                    "/p/params.yaml": [*dead["read"]["/p/params.yaml"], *living["read"]["/p/params.yaml"]],
                    "/p/flows": dead["read"]["/p/stages"],
                },
            }
        )
    )
    remove_dead_entries(table.parents[2])
    assert json.loads(table.read_text()) == {
        "write": living["write"],
        "read": {"/p/params.yaml": living["read"]["/p/params.yaml"]},
    }


def test_an_id_that_was_given_again_holds_nothing(table: Path, dvc: subprocess.Popen[bytes]) -> None:
    """DVC alone refuses: it asks only whether a process with that id lives."""
    root = table.parents[2]
    table.write_text(json.dumps({"write": {str(root / "data"): {"pid": dvc.pid, "cmd": "dvc repro questions"}}}))
    with pytest.raises(Exception, match="is busy"):
        lock_out(root, "data")
    remove_dead_entries(root)
    lock_out(root, "data")


HALF = ["", '{"write": {"/p/da', "[]", "null", '{"write": {"/p": 5}}', '{"read": {"/p": [{"pid": -1, "cmd": "x"}]}}']


@pytest.mark.parametrize("half", [*HALF, '{"read": {"/p": 7}}', '{"write": {"/p": {"pid": "1", "cmd": "x"}}}'])
def test_half_a_table_is_removed_unless_a_dvc_works_here(table: Path, half: str, dvc: subprocess.Popen[bytes]) -> None:
    root = table.parents[2]
    table.write_text(half)
    remove_dead_entries(root)
    assert table.read_text() == half
    dvc.kill()
    dvc.wait(30)
    remove_dead_entries(root)
    assert not table.exists()
    lock_out(root, "data")


def test_a_table_of_experiments_is_cleaned_too(table: Path) -> None:
    other = table.parent / "exps" / "rwlock"
    other.parent.mkdir()
    other.write_text(json.dumps(entries(start_and_kill())))
    remove_dead_entries(table.parents[2])
    assert json.loads(other.read_text()) == {"write": {}, "read": {}}


def test_without_a_table_nothing_is_made(tmp_path: Path) -> None:
    remove_dead_entries(tmp_path)
    assert not list(tmp_path.iterdir())

"""A dvc.lock that is cut off anywhere gets its entries back; one that is whole stays as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from flows.dvc.cut_lock import is_cut, keep_whole_lock, mend_cut_lock

MD5 = "0123456789abcdef" * 2


def make_entries(names: str, step: int = 1) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in names:
        file = {"path": f"code/{name}.py", "hash": "md5", "md5": MD5, "size": step}
        outs = [{"path": f"data/{name}{part}", "hash": "md5", "md5": f"{MD5}.dir", "size": step} for part in (1, 2)]
        params = {"params.yaml": {name: {"list": [step, "two"], "text": "x: y"}}}
        found[name] = {"cmd": f"run {name}", "deps": [file], "params": params, "outs": outs}
    return found


def dump(entries: dict[str, object]) -> str:
    return yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(dump(make_entries("abc")))
    keep_whole_lock(tmp_path)
    return tmp_path


def test_cut_anywhere_it_has_all_entries_again(root: Path) -> None:
    """DVC was about to write entry b anew, or to add entry d."""
    old, said = make_entries("abc"), []
    for new in ({**old, **make_entries("b", 2)}, {**old, **make_entries("d")}):
        text = dump(new)
        for cut in range(0, len(text), 7):
            (root / "dvc.lock").write_text(text[:cut])
            said.append(mend_cut_lock(root))
            found = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
            assert found.keys() >= old.keys(), cut
            assert all(found[name] in (entry, new[name]) for name, entry in old.items()), cut
    assert sum(map(bool, said)) > 0.9 * len(said), "an entry that the copy lacks may be cut without a trace"


def test_what_is_whole_stays(root: Path) -> None:
    newer = {**make_entries("abc"), **make_entries("b", 2), **make_entries("d")}
    conflict = dump(newer).replace("    cmd: run a\n", "<<<<<<< HEAD\n    cmd: run a\n=======\n    cmd: a\n>>>>>>> x\n")
    older = {**make_entries("ab", 3)}  # of another commit
    for text in (dump(newer), conflict, dump(older), dump(make_entries("cab"))):
        (root / "dvc.lock").write_text(text)
        assert mend_cut_lock(root) == ""
        assert (root / "dvc.lock").read_text() == text
    (root / "dvc.lock").unlink()
    assert not is_cut(root)


def test_a_cut_file_is_not_kept_and_a_file_that_dvc_writes_is_left_to_it(root: Path) -> None:
    from dvc.lock import make_lock

    half = dump(make_entries("abc"))[:-90]
    (root / "dvc.lock").write_text(half)
    keep_whole_lock(root)
    with make_lock(str(root / ".dvc" / "tmp" / "lock"), tmp_dir=str(root / ".dvc" / "tmp")):
        assert mend_cut_lock(root) == ""
    assert (root / "dvc.lock").read_text() == half
    assert "2 entries, and 1 come from the copy" in mend_cut_lock(root)


def test_a_stage_that_dvc_starts_keeps_a_copy(
    make_project: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    project = make_project()
    Repo.init(str(project), no_scm=True).close()
    lock = project / "dvc.lock"
    lock.write_text(dump(make_entries("ab")))
    code, _, err = call(project, "flows.run", "questions", DVC_STAGE="questions")
    assert code == 0, err
    assert (project / ".dvc" / "tmp" / "dvc.lock.whole").read_text() == lock.read_text()


@pytest.mark.slow
def test_ril_run_mends_it_and_runs_nothing_again(
    make_project: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    project = make_project()
    Repo.init(str(project), no_scm=True).close()
    assert call(project, "flows.cli", "run", "--no-server", "questions")[0] == 0
    lock = project / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("    outs:")])
    shutil.rmtree(project / ".dvc" / "cache" / "runs")
    environment = {**os.environ, "PYTHONPATH": str(project)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    words = [sys.executable, "-m", "dvc", "repro", "questions"]
    typed = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=180)
    assert typed.returncode != 0, "plain dvc would make it again"
    assert "dvc.lock was cut off, since a dvc was killed while it wrote it; `ril run` mends it" in typed.stderr

    code, out, err = call(project, "flows.cli", "run", "--no-server", "questions")
    assert code == 0, err
    assert "warning: dvc.lock was cut off" in out
    assert "Stage 'questions' didn't change, skipping" in out or "Checking out" in out or "cached" in out, out
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(whole)

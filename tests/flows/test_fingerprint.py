"""The fingerprint: equal for equal content, another one for every change, and the change is named."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from flows.fingerprint import Fingerprint
from flows.lockfile import is_recorded, mark_unrecorded
from stages.job.hashes import hash_json, hash_md5

NAMES = st.text("abc", min_size=1, max_size=3)
FOLDERS = st.dictionaries(NAMES, st.binary(max_size=20), min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for old in folder.glob("*"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@given(FOLDERS, FOLDERS)
def test_fingerprints_are_equal_exactly_when_content_is(
    tmp_path: Path, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    first = Fingerprint(tmp_path, [fill(tmp_path / "in", one)], {}).digest
    second = Fingerprint(tmp_path, [fill(tmp_path / "in", two)], {}).digest
    assert (first == second) == (one == two)


@given(JSON, JSON)
def test_values_are_equal_exactly_when_their_hashes_are(one: object, two: object) -> None:
    assert (hash_json([one]) == hash_json([two])) == (repr(_sorted(one)) == repr(_sorted(two)))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


def test_nothing_moved_when_a_file_is_only_touched(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    before = Fingerprint(tmp_path, [tmp_path / "a"], {"x": 1})
    os.utime(tmp_path / "a", ns=(1, 1))
    assert before.find_changes({"x": 1}) == []


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_what_moved_is_named(tmp_path: Path, change: str) -> None:
    folder = fill(tmp_path / "in", {"a": b"1", "b": b"2"})
    before = Fingerprint(tmp_path, [folder], {})
    if change == "edit":
        (folder / "a").write_bytes(b"longer")
    elif change == "add":
        (folder / "c").write_bytes(b"3")
    else:
        (folder / "b").unlink()
    assert before.find_changes({}) == [{"edit": "in/a", "add": "in/c", "remove": "in/b"}[change]]


def test_changed_values_are_named(tmp_path: Path) -> None:
    assert Fingerprint(tmp_path, [], {"rate": 0.5}).find_changes({"rate": 0.7}) == ["params.yaml"]


def test_generated_files_do_not_count(tmp_path: Path, root: Path) -> None:
    shutil.copy(root / ".dvcignore", tmp_path)
    folder = fill(tmp_path / "in", {"a": b"1"})
    before = Fingerprint(tmp_path, [folder], {})
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"x")
    (folder / ".gitignore").write_text("/out")
    assert before.find_changes({}) == []


def test_inputs_may_lie_outside_the_project(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.json"
    outside.write_text("1")
    before = Fingerprint(tmp_path / "project", [outside], {})
    outside.write_text("22")
    assert before.find_changes({}) == [str(outside)]


# --- results of other stages ------------------------------------------------------------------------------------------


MADE = ("pool", "teacher-x")


@pytest.fixture
def recorded(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose dvc.lock knows data/pool and data/teacher/x, as dvc itself wrote it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "data" / "pool", {"a": b"1", "b": b"22"})
    fill(tmp_path / "data" / "teacher" / "x", {"part": b"333"})
    (tmp_path / "data" / "pool" / "deep").mkdir()
    (tmp_path / "data" / "pool" / "deep" / "c").write_bytes(b"4444")
    shutil.copy(root / ".dvcignore", tmp_path)
    stages = {name: {"cmd": "true", "deps": ["code"], "outs": [f"data/{name.replace('-', '/')}"]} for name in MADE}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "code").write_text("1")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.commit(force=True)
    return tmp_path


def given(project: Path) -> Fingerprint:
    return Fingerprint(project, [project / "data" / "pool", project / "data" / "teacher" / "x"], {})


def test_a_result_of_a_stage_is_known_by_dvc_lock_and_not_read(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("flows.fingerprint.hash_md5", read.append)
    before = given(recorded)
    os.utime(recorded / "data" / "pool" / "a")
    assert not read
    assert before.digest == given(recorded).digest


def test_the_fingerprint_is_the_same_before_dvc_has_recorded_the_result(recorded: Path) -> None:
    with_lock = given(recorded)
    (recorded / "dvc.lock").unlink()
    assert given(recorded).digest == with_lock.digest


def test_a_result_that_dvc_lock_does_not_describe_is_read(recorded: Path) -> None:
    before = given(recorded)
    (recorded / "data" / "pool" / "a").write_bytes(b"longer")
    assert given(recorded).digest != before.digest
    assert before.find_changes({}) == ["data/pool/a"]


def test_a_result_of_the_same_length_that_dvc_did_not_record_is_read(recorded: Path) -> None:
    before = given(recorded)
    mark_unrecorded(recorded, "teacher@x")
    assert given(recorded).digest == before.digest
    assert is_recorded(recorded, "teacher@x"), "it was read and is the one that dvc.lock has"
    mark_unrecorded(recorded, "teacher@x")
    (recorded / "data" / "teacher" / "x" / "part").write_bytes(b"444")
    assert given(recorded).digest != before.digest
    assert not is_recorded(recorded, "teacher@x")


def test_a_known_result_that_moves_is_named_and_a_touched_one_is_not(recorded: Path) -> None:
    before = given(recorded)
    os.utime(recorded / "data" / "teacher" / "x" / "part", ns=(1, 1))
    assert before.find_changes({}) == []
    (recorded / "data" / "teacher" / "x" / "part").write_bytes(b"444")
    assert before.find_changes({}) == ["data/teacher/x/part"]
    (recorded / "data" / "pool" / "deep" / "c").unlink()
    assert given(recorded).digest != before.digest


def test_a_folder_of_results_and_a_part_of_one_are_known_by_the_results(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.fingerprint.hash_md5", lambda path: pytest.fail(f"{path} was read"))
    all_teachers = Fingerprint(recorded, [recorded / "data" / "teacher"], {}).digest
    part_of_pool = Fingerprint(recorded, [recorded / "data" / "pool" / "deep"], {}).digest
    assert len({all_teachers, part_of_pool, Fingerprint(recorded, [recorded / "data" / "pool"], {}).digest}) == 3


def test_what_dvc_has_hashed_is_not_read_again_unless_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real memory of DVC. An edit that leaves the length is seen by its time, a new file by its absence."""
    (tmp_path / "memory").mkdir(mode=0o700)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "memory"))
    project = tmp_path / "project"
    folder = fill(project / "in", {"a": b"one", "b": b"two", "c": b"three"})
    expected = Fingerprint(project, [folder], {}).digest
    with Repo.init(str(project), no_scm=True) as repo:
        repo.add(str(folder))
        assert Path(str(repo.site_cache_dir)).is_relative_to(tmp_path / "memory")
    read: list[str] = []

    def hash_file(path: Path) -> str:
        read.append(path.name)
        return hash_md5(path)

    monkeypatch.setattr("flows.fingerprint.hash_md5", hash_file)
    monkeypatch.setattr("flows.fingerprint.MUCH", 11)
    same = Fingerprint(project, [folder], {})
    assert (same.digest, read) == (expected, [])

    (folder / "b").unlink()
    (folder / "b").write_bytes(b"TWO")
    (folder / "d").write_bytes(b"four")
    assert same.find_changes({}) == ["in/b", "in/d"]
    assert sorted(read) == ["b", "d"]
    read.clear()
    changed = Fingerprint(project, [folder], {}).digest
    assert sorted(read) == ["b", "d"]
    monkeypatch.setattr("flows.fingerprint.MUCH", 10**9)
    assert changed == Fingerprint(project, [folder], {}).digest != expected

    monkeypatch.setattr("flows.fingerprint.MUCH", 11)
    read.clear()
    (tmp_path / "memory").chmod(0o755)
    assert Fingerprint(project, [folder], {}).digest == changed
    assert sorted(read) == ["a", "b", "c", "d"], "others could write there"

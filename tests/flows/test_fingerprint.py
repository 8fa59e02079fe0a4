"""The fingerprint: equal for equal content, another one for every change, and the change is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.fingerprint import Fingerprint
from stages.job.hashes import hash_json

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
    folder.mkdir(exist_ok=True)
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
    assert before.moved({"x": 1}) == []


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
    assert before.moved({}) == [{"edit": "in/a", "add": "in/c", "remove": "in/b"}[change]]


def test_changed_values_are_named(tmp_path: Path) -> None:
    assert Fingerprint(tmp_path, [], {"rate": 0.5}).moved({"rate": 0.7}) == ["params.yaml"]


def test_generated_files_do_not_count(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a": b"1"})
    before = Fingerprint(tmp_path, [folder], {})
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"x")
    (folder / ".gitignore").write_text("/out")
    assert before.moved({}) == []


def test_inputs_may_lie_outside_the_project(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.json"
    outside.write_text("1")
    before = Fingerprint(tmp_path / "project", [outside], {})
    outside.write_text("22")
    assert before.moved({}) == [str(outside)]

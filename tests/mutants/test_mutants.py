"""The table of faults speaks of the source as it is, and the script says of a fault what its tests saw."""

import re
from pathlib import Path

import pytest

from tests.mutants.copies import replacing
from tests.mutants.page import read_trials
from tests.mutants.run import draw_faults, main
from tests.mutants.table import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_applies_and_its_tests_are_there(root: Path, fault: Fault) -> None:
    assert (root / fault.file).read_text().count(fault.text) == 1
    assert fault.replacement != fault.text
    compile((root / fault.file).read_text().replace(fault.text, fault.replacement), fault.file, "exec")
    assert fault.tests
    for test in fault.tests:
        file, *names = test.partition("[")[0].split("::")
        assert all(f"def {name}(" in (root / file).read_text() for name in names), test


def test_there_are_faults_enough_and_none_twice() -> None:
    assert len(FAULTS) >= 80
    assert len({(fault.file, fault.text, fault.replacement) for fault in FAULTS}) == len(FAULTS)
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


def test_the_page_names_every_fault(root: Path) -> None:
    named = re.findall(r"^- (.*) \((\d+), \d+ s\):\n  `", (root / "docs" / "mutants.md").read_text(), re.MULTILINE)
    assert sorted((int(number), what) for what, number in named) == [
        (number, fault.what) for number, fault in enumerate(FAULTS, 1)
    ]


def test_a_draw_is_a_function_of_the_commit_and_reaches_every_fault() -> None:
    assert draw_faults(10, "a" * 40) == draw_faults(10, "a" * 40)
    draws = [draw_faults(10, f"{commit:040x}") for commit in range(200)]
    assert all(len(set(drawn)) == 10 for drawn in draws)
    assert {number for drawn in draws for number in drawn} == set(range(1, len(FAULTS) + 1))


def test_a_fault_is_put_in_and_taken_out(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("a = 1\nb = 1\n")
    with replacing(file, "a = 1", "a = 2"):
        assert file.read_text() == "a = 2\nb = 1\n"
    assert file.read_text() == "a = 1\nb = 1\n"
    for text, times in (("= 1", 2), ("c", 0)):
        with pytest.raises(ValueError, match=f"stands {times} times"), replacing(file, text, ""):
            pass


TOY = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
    "module.py": "value = 1\nother = 1\n",
    "test_module.py": """
import time
from module import value
def test_one(): assert value == 1
def test_any(): assert value
def test_endless():
    while value == 2: time.sleep(1)
""",
}


def make_fault(text: str, replacement: str, test: str) -> Fault:
    return Fault("module.py", text, replacement, f"{replacement} for {test}", (f"test_module.py::{test}",))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of three files with five faults."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name, text in TOY.items():
        (folder / name).write_text(text)
    faults = (
        make_fault("value = 1", "value = 2", "test_one"),
        make_fault("value = 1", "value = 2", "test_any"),
        make_fault("value = 1", "value = 2", "test_endless"),
        make_fault("value = 1", "value = (", "test_one"),
        make_fault("= 1", "= 2", "test_one"),
    )
    monkeypatch.setattr("tests.mutants.run.FAULTS", faults)
    monkeypatch.setattr("tests.mutants.run.import_libraries", lambda: None)
    monkeypatch.setattr("tests.mutants.copies.ROOT", folder)
    monkeypatch.setattr("tests.mutants.copies.FOLDERS", ())
    monkeypatch.setattr("tests.mutants.copies.FILES", tuple(TOY))
    return folder


def test_every_fault_has_a_line_and_those_that_are_not_killed_are_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert main(["--jobs", "2", "--limit", "20", "--log", str(log)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" s  ")[2].partition("  ")[0] for line in lines[:-1]] == [
        *("killed", "SURVIVED", "STOPPED after 20 s", "NOT RUN, pytest ended with 4"),
        "DOES NOT APPLY: the text stands 2 times in the file",
    ]
    assert lines[0].endswith("module.py: value = 2 for test_one by test_module.py::test_one")
    assert lines[-1] == "5 faults, 1 killed; left: [2, 3, 4, 5]"
    trials = read_trials([log])
    assert [trial.number for trial in trials.values()] == [1, 2, 3, 4, 5]
    assert trials["value = 2 for test_one"].test == "test_module.py::test_one"


def test_only_what_is_asked_for_is_tried(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 faults, 1 killed"


def test_a_test_that_fails_without_a_fault_sees_nothing(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "module.py").write_text("value = 1 - 1\n")
    assert main(["--only", "1"]) == 1
    assert "without a fault: test_module.py::test_one fails" in capsys.readouterr().out

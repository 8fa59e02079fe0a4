"""The table of faults speaks of the source as it is, and the script says of a fault what its tests saw."""

import re
from pathlib import Path

import pytest

from tests.mutants.copies import replacing
from tests.mutants.run import draw_faults, try_fault
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


@pytest.mark.parametrize(
    ("test", "limit", "outcome"),
    [
        ("assert value == 1", 120, "killed"),
        ("assert value", 120, "SURVIVED"),
        ("while True: pass", 4, "STOPPED after 4 s"),
    ],
)
def test_a_trial_says_what_the_tests_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, limit: float, outcome: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "module.py").write_text("value = 1\n")
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (folder / "test_module.py").write_text(f"from module import value\ndef test_value():\n    {test}\n")
    fault = Fault("module.py", "= 1", "= 2", "another value", ("test_module.py",))
    monkeypatch.setattr("tests.mutants.run.FAULTS", (fault,))
    trial = try_fault(folder, 1, limit)
    assert trial.outcome == outcome, (tmp_path / "copy.log").read_text()
    assert trial.test == ("test_module.py::test_value" if outcome == "killed" else "")
    assert (folder / "module.py").read_text() == "value = 1\n"

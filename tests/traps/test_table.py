"""The table of guards, docs/traps.md and the code speak of the same things; check.py is what takes the guards out."""

import re
from pathlib import Path

import pytest

from tests.traps.check import main
from tests.traps.table import GUARDS

ENTRY = re.compile(r"^- \*\*(T\d+b?)\*\* (.*?)(?=^- |^$)", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.trap} {guard.test.rsplit('::')[-1]}")
def test_a_guard_stands_where_the_table_says(root: Path, guard: object) -> None:
    assert (root / guard.file).read_text().count(guard.text) == 1  # type: ignore[attr-defined]
    file, _, name = guard.test.partition("::")  # type: ignore[attr-defined]
    assert f"def {name}(" in (root / file).read_text()


def test_the_document_has_every_trap_and_the_tests_of_those_that_have_one(root: Path) -> None:
    text = (root / "docs" / "traps.md").read_text()
    entries = dict(ENTRY.findall(text))
    assert list(entries) == [*(f"T{n}" for n in range(1, 29)), "T28b", *(f"T{n}" for n in range(29, 44))]
    for guard in GUARDS:
        assert guard.test.rsplit("::")[-1] in entries[guard.trap], guard.trap
    assert len({guard.trap for guard in GUARDS}) >= 30


def test_the_script_says_what_it_takes_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.traps.check.import_libraries", lambda: pytest.fail("it runs"))
    for arguments, code, said in (["--help"], 0, "--vllm"), (["T7", "T99"], 2, "no guard of T99"), (["-x"], 2, "-x"):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert (ended.value.code, said in told.out + told.err) == (code, True)

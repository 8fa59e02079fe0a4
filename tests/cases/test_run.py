"""The runner of hostile inputs."""

import ast
from pathlib import Path

import pytest

from tests.cases import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("node", sorted(set(run.PLAYED.values())))
def test_a_test_that_plays_a_case_exists(node: str) -> None:
    file, _, name = node.partition("::")
    functions = [each.name for each in ast.parse((ROOT / file).read_text()).body if isinstance(each, ast.FunctionDef)]
    assert not name or name in functions


def test_a_case_is_run_and_a_wrong_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in (("good", "sed"), ("bad", "nothing: 1")):
        folder = tmp_path / "params" / name
        folder.mkdir(parents=True)
        text = (ROOT / "params.yaml").read_text()
        (folder / "params.yaml").write_text(text if line == "sed" else f"{text}\n{line}\n")
    outcomes = {outcome.case: outcome for outcome in run.run_cases(tmp_path, ROOT, [])}
    assert outcomes["params/good"].result == "accepted"
    assert outcomes["params/bad"].result == "refused"
    assert "nothing" in outcomes["params/bad"].line
    assert run.judge(1, "Traceback (most recent call last)\n") == "traceback"
    assert run.judge(-9, "") == "code -9"

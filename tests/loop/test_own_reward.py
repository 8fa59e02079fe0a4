"""docs/rewards.md, from an empty file to a finished loop; faults in the loop; what is kept and computed again."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from stages.config.yaml import merge_params, read_yaml
from stages.job.failure import Failure
from tests.loop.recording import record_loop
from tests.loop.script import judge_answer, make_engines
from tests.loop.world import OVERLAY, ROOT, make_job, write_function

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


def list_commands() -> list[str]:
    return [line for block in read_blocks("bash") for line in block.splitlines() if line.startswith("ril ")]


def listed(code: str = "rewards/unit.py", **entry: Any) -> dict[str, Any]:
    return {"ril": {"reward_code": code, "rewards": [{"use": "rewards/unit.py", "name": "unit", **entry}]}}


def test_the_page_makes_a_reward_that_trains(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_world("qwen2_5_vl")
    monkeypatch.chdir(folder)
    (code,) = read_blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    write_function(folder, code)
    commands = list_commands()
    assert commands[0] == "ril rewards try rewards/unit.py:check"
    tried = CliRunner().invoke(app, commands[0].split()[1:], catch_exceptions=False)
    assert tried.exit_code == 0, tried.output
    assert "failed 0 (0.0%)" in tried.stdout
    recording = record_loop(make_job("ril", folder, yaml.safe_load(read_blocks("yaml")[0])))
    assert len(recording.history) == 3
    assert all(row["rewards/function/unit/failed"] == 0 for row in recording.history)
    assert {one["function/unit"] for one in recording.samples} == {0.0, 1.0}


def test_a_function_trains_and_its_values_are_in_curves_and_samples(make_world: Callable[[str], Path]) -> None:
    folder = make_world("qwen2_5_vl")
    write_function(folder, "def check(answer, question):\n    return len(answer) + 100 * len(question)\n")
    recording = record_loop(make_job("ril", folder, listed(weight=0.5)))
    for step, row in enumerate(recording.history):
        samples = [one for one in recording.samples if one["step"] == step + 1]
        for side, column in (("student", "rewards/function/unit"), ("teacher", "rewards/function/unit/teacher")):
            values = [one["function/unit"] for one in samples if (one["source"] == "student") == (side == "student")]
            assert row[column] == pytest.approx(sum(values) / len(values), rel=1e-5)
        assert row["rewards/function/unit/failed"] == 0.0
        assert all(one["function/unit"] % 100 == len(one["response"]) % 100 for one in samples)


def test_a_function_that_fails_too_often_ends_the_stage(make_world: Callable[[str], Path]) -> None:
    folder = make_world("qwen2_5_vl")
    write_function(folder, "def check(answer):\n    return float('nan')\n")
    with pytest.raises(Failure, match=r"ril, step 1: reward 'unit' .*16 of 16 calls failed.*16 returned nan"):
        record_loop(make_job("ril", folder, listed()))


def test_a_resumed_step_reuses_the_recorded_values(make_world: Callable[[str], Path]) -> None:
    folder = make_world("qwen2_5_vl")
    count = "def check(answer):\n    open('calls', 'a').write('x')\n    return len(answer) % 3\n"
    write_function(folder, count)
    job = make_job("ril", folder, listed() | {"runtime": {"checkpoint_minutes": 999}})
    first = record_loop(job)
    assert job.run_folder is not None
    recorded = sorted((job.run_folder / "recorded").glob("step_*.json"))
    values = json.loads(recorded[0].read_text())
    assert all(row["rewards"] == [len(row["text"]) % 3] for group in values["groups"] for row in group)
    calls = (folder / "calls").read_text()
    (folder / "calls").unlink()
    again = record_loop(job)  # from the start, with the recorded answers, verdicts and values of every step
    assert not (folder / "calls").exists()
    assert calls
    assert again.history == first.history
    assert again.samples == first.samples
    values["judged"] = False
    for group in values["groups"]:
        for row in group:
            row |= {"verdict": None if row["source"] == "student" else row["verdict"], "rewards": []}
    recorded[0].write_text(json.dumps(values))
    assert record_loop(job).history == first.history, "verdicts and values that are missing are asked for"


def test_the_pages_rubric_is_tried_on_stored_answers(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_world("qwen2_5_vl")
    monkeypatch.chdir(folder)
    values = merge_params(read_yaml(ROOT / "params.yaml"), OVERLAY)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    _, judge = make_engines(folder)
    monkeypatch.setattr("stages.engines.start.start_engine", lambda *_: judge)
    (command,) = list_commands()[1:]
    tried = CliRunner().invoke(app, shlex.split(command)[1:])
    assert judge.graded, (tried.output, tried.exception)
    (asked,) = judge.graded
    failed = sum(judge_answer(rubric, candidate) is None for _, candidate, rubric in asked)
    assert {rubric for *_, rubric in asked} == {"Has no formula."}
    assert tried.exit_code == (failed > 0.2 * len(asked)), tried.output
    assert "rubric: 50 of " in tried.output or f"rubric: {len(asked)} of " in tried.output
    assert "no verdict" in tried.output


def test_a_rubric_without_verdicts_ends_the_stage(make_world: Callable[[str], Path]) -> None:
    rubric = {"use": "rubric", "name": "short", "rubric": "Is short.", "max_failed_share": 0.0}
    job = make_job("ril", make_world("qwen2_5_vl"), {"ril": {"rewards": [rubric]}})
    with pytest.raises(Failure, match=r"ril, step \d: reward 'short': \d+ of 16 verdicts by the rubric failed"):
        record_loop(job)

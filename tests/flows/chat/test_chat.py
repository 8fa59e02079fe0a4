"""`ril chat` with real engines: the answers of stage `evaluate`, scores of the discriminator, verdicts of the judge."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.corpora.rows import read_questions
from stages.job.files import read_shards
from tests.flows.tiny_run import copy_run

Call = Callable[..., tuple[int, str, str]]


def chat(call: Call, project: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = call(project, "flows.cli", "chat", *arguments, "--json")
    assert code == 0, err[-3000:]
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_answers_are_those_of_stage_evaluate(evaluated_run: Path, call: Call) -> None:
    """A row of the data, and its picture and words given by a person: greedy answers, token for token."""
    rows = read_shards(evaluated_run / "data" / "evaluate" / "ril").to_pylist()
    stored = {row["question_id"]: row for row in rows}
    question = read_questions(evaluated_run / "data" / "questions", "test")[1]
    by_row = chat(call, evaluated_run, "--row", question.id, "--models", "ril,internvl3")
    (own, teacher) = by_row["answers"]
    assert own["text"] == stored[question.id]["response"]
    assert own["tokens"] == stored[question.id]["completion_tokens"]
    assert own["finish_reason"] == stored[question.id]["finish_reason"]
    assert (own["name"], teacher["name"]) == ("ril", "internvl3")
    assert teacher["text"] != own["text"]
    assert by_row["reference"] == question.answer
    assert by_row["left_out"] == {}

    picture = evaluated_run / "picture.png"
    picture.write_bytes(question.images[0])
    by_hand = chat(call, evaluated_run, "--image", str(picture), "--question", question.text, "--models", "ril")
    assert by_hand["answers"][0]["text"] == own["text"]
    assert by_hand["answers"][0]["verdict"] is None  # nobody has said what is right


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_discriminator_and_judge_look_at_every_answer(tiny_run: Path, tmp_path: Path, call: Call) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    shutil.rmtree(project / "data" / "model" / "internvl3")
    found = chat(call, project, "--question", "What is the sum?", "--reference", "7", "--max-tokens", "200")
    assert [one["name"] for one in found["answers"]] == ["base", "warm_start", "ril", "qwen2_5_vl"]
    assert found["left_out"] == {
        "internvl3": "data/model/internvl3 is missing; make it with: dvc repro model@internvl3"
    }
    for one in found["answers"]:
        whole = one["finish_reason"] == "stop" and one["text"]
        assert one["verdict"] in (0, 1)  # the form plain always has a word
        assert one["teacher_probability"] is None or (whole and 0 <= one["teacher_probability"] <= 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_loop_asks_again_with_the_engines_that_run(tiny_run: Path) -> None:
    question = read_questions(tiny_run / "data" / "questions", "test")[0]
    (tiny_run / "loop.png").write_bytes(question.images[0])
    lines = [":image loop.png", ":nothing", "What is it?", ":reference 7", f":row {question.id}", ":quit"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "chat", "--models", "base,ril", "--together"],
        cwd=tiny_run,
        env={**os.environ, "PYTHONPATH": str(tiny_run)},
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("question: ") == 2
    assert f"question: {question.text}" in done.stdout
    assert done.stderr.count("starting Base student") == 1
    assert done.stderr.count("starting RIL student") == 1
    assert "error: no command :nothing; :help lists them" in done.stderr


def test_two_questions_and_no_models_are_lines(
    tiny_run: Path, ril: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    for words, said in (
        (("--question", "a", "--row", "b"), "error: --question and --row are two questions; give one of them"),
        (("--models", "nothing", "--question", "a"), "error: no model 'nothing'"),
        (("--question", "a", "--image", "nothing.png"), "error: nothing.png: no such file"),
        (("--row", "nothing"), "error: no row 'nothing' in"),
    ):
        code, _, err = ril("chat", *words)
        assert code == 2
        assert said in err

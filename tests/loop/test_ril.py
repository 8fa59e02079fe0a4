"""`ril.run` against the plain loop: rows, order, verdicts, logits, advantages, rates, weights, validation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.job.files import read_shards
from tests.loop.checks import (
    check_judge,
    check_plain,
    check_questions,
    check_rows,
    check_rubrics,
    check_scorers,
    check_validation,
)
from tests.loop.recording import record_loop
from tests.loop.settings import SETTINGS, UNIT, list_rubrics
from tests.loop.world import make_job, write_adapter, write_function, write_scorers


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_loop_does_what_the_paper_says(name: str, make_world: Callable[[str], Path]) -> None:
    setting = SETTINGS[name]
    folder = make_world(setting.family)
    if setting.recipe.critic_adapter is not None:
        write_adapter(folder / "data" / "warm_start", folder / "data" / "discriminator")
    if setting.recipe.functions:
        write_function(folder, UNIT)
    if setting.recipe.scorers:
        write_scorers(folder, setting.family)
    recording = record_loop(make_job("ril", folder, setting.params))
    check_questions(recording, setting.recipe)
    check_rows(recording, folder, setting.recipe)
    check_judge(recording, setting.recipe)
    check_rubrics(recording, list_rubrics(setting))
    check_scorers(recording, setting.recipe)
    check_plain(recording, folder, setting.recipe)
    check_validation(recording, folder, setting.recipe)


def test_validation_comes_after_every_so_many_steps_and_after_the_last(make_world: Callable[[str], Path]) -> None:
    recording = record_loop(make_job("ril", make_world("qwen2_5_vl"), {"ril": {"validation_every": 2}}))
    assert [row["step"] for row in recording.validation] == [0, 2, 3]


def test_answers_to_the_first_validation_questions_are_kept(make_world: Callable[[str], Path]) -> None:
    job = make_job("ril", make_world("qwen2_5_vl"), {"ril": {"steps": 1, "warmup_steps": 0, "validation_samples": 2}})
    recording = record_loop(job)
    rows = read_shards(job.out / "validation").to_pylist()
    assert [(row["step"], row["question_id"]) for row in rows] == [(0, "v3"), (0, "v2"), (1, "v3"), (1, "v2")]
    assert {row["kind"] for row in rows} == {"sum"}
    assert all(row["response"] for row in rows)
    scores = [row["score"] for row in rows if row["step"] == 1]
    assert sum(scores) <= 4 * recording.validation[1]["validation"] <= sum(scores) + 2

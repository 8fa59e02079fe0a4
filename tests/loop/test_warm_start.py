"""`warm_start.run` against plain SFT: questions of each step, rates, losses and all weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages import warm_start
from stages.job.files import read_json
from tests.loop.checks import compare
from tests.loop.plain import fine_tune
from tests.loop.plain_models import Vlm, copy_weights, freeze_vision
from tests.loop.recording import read_table, record_training
from tests.loop.settings import WARM_START, WARM_START_RATES
from tests.loop.world import WARMING, make_job


@pytest.mark.parametrize("frozen", [False, True])
def test_the_warm_start_is_plain_sft(family: str, frozen: bool, make_world: Callable[[str], Path]) -> None:
    folder = make_world(family)
    job = make_job("warm_start", folder, {"warm_start": {**WARM_START, "freeze_vision": frozen}})
    steps = record_training(warm_start.run, job)
    tasks = {task.id: task for task in WARMING if task.target}
    asked = [name for step in steps for name in step.questions]
    assert [len(step.questions) for step in steps] == [2, 2, 2]
    assert sorted(asked[: len(tasks)]) == sorted(tasks), "the first epoch has every question with a target once"
    assert [step.rate for step in steps] == pytest.approx(WARM_START_RATES)

    vlm = Vlm(folder / "data" / "model" / "student")
    start = copy_weights(vlm.net)
    if frozen:
        freeze_vision(vlm.net)
    losses = fine_tune(vlm, [[tasks[name] for name in step.questions] for step in steps], WARM_START_RATES)
    compare(Vlm(folder / "data" / "warm_start").net.state_dict(), vlm.net.state_dict(), start)
    history = read_table(job.reports / "history.csv")
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)
    assert read_json(job.reports / "metrics.json")["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_without_steps_the_base_student_is_passed_through(make_world: Callable[[str], Path]) -> None:
    """Table 5e."""
    folder = make_world("internvl3")
    warm_start.run(make_job("warm_start", folder, {"warm_start": {**WARM_START, "steps": 0, "warmup_steps": 0}}))
    start = copy_weights(Vlm(folder / "data" / "model" / "student").net)
    compare(Vlm(folder / "data" / "warm_start").net.state_dict(), start, start)

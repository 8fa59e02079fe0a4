"""`warm_start.run` against plain SFT: questions of each step, rates, losses and all weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages import warm_start
from stages.job.files import read_json
from tests.loop.checks import compare
from tests.loop.plain import fine_tune
from tests.loop.plain_models import Vlm, adapt, copy_adapter, copy_weights, freeze_vision
from tests.loop.recording import read_table, record_training
from tests.loop.settings import SCALE, WARM_START, WARM_START_RATES
from tests.loop.world import LORA, WARMING, make_job


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


def test_with_adapters_it_is_plain_sft_of_them(family: str, make_world: Callable[[str], Path]) -> None:
    """The checkpoint has them merged, and the adapter lies beside it; nothing else of the model has changed."""
    folder = make_world(family)
    rates = tuple(100 * rate for rate in WARM_START_RATES)
    block = {**WARM_START, "learning_rate": 1e-3, "final_learning_rate": 1e-4, "freeze_vision": True, "lora": LORA}
    steps = record_training(warm_start.run, make_job("warm_start", folder, {"warm_start": block}))
    tasks = {task.id: task for task in WARMING if task.target}
    vlm = Vlm(folder / "data" / "model" / "student")
    start, text = copy_weights(vlm.net), vlm.net.model.language_model
    first = {name: value for name, value in steps[0].start.items() if "lora_B" in name}
    assert len(first) == 14
    assert not any(value.any() for value in first.values()), "it starts as the base student"
    adapt(vlm.net, text, steps[0].start, SCALE)
    losses = fine_tune(vlm, [[tasks[name] for name in step.questions] for step in steps], rates)
    trained = Vlm(folder / "data" / "warm_start").net.state_dict()
    compare(trained, copy_weights(vlm.net), start)
    assert sum(not torch.equal(trained[name], start[name]) for name in start) == 14
    assert losses[-1] < losses[0]
    stored = load_file(folder / "data" / "warm_start" / "adapter" / "adapter_model.safetensors")
    found = {name.removeprefix("base_model.model.model.language_model."): one for name, one in stored.items()}
    compare(found, copy_adapter(text), steps[0].start)


def test_without_steps_the_base_student_is_passed_through(make_world: Callable[[str], Path]) -> None:
    """Table 5e."""
    folder = make_world("internvl3")
    warm_start.run(make_job("warm_start", folder, {"warm_start": {**WARM_START, "steps": 0, "warmup_steps": 0}}))
    start = copy_weights(Vlm(folder / "data" / "model" / "student").net)
    compare(Vlm(folder / "data" / "warm_start").net.state_dict(), start, start)

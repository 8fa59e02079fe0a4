"""Garbage ends training: whatever number becomes NaN or infinite, none of it is kept, and the last state is whole."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flows.work import Work
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.engines.vllm import VllmEngine
from stages.job.files import read_json, write_json
from stages.job.progress import Progress
from stages.job.stop import STOP
from stages.training.guard import SETTLED, WINDOW, NonFinite, NormHistory, StepGuard, name_questions
from stages.training.state import TrainingState, list_complete_checkpoints
from stages.training.trainer import Trainer, save_weights
from stages.vlm.identity import CARD, hash_content
from stages.vlm.weights import BadWeights, check_files, find_broken_tensor
from tests.stages.training import poison
from tests.stages.training.poison import VALUES
from tests.stages.training.test_processes import change
from tests.stages.training.test_state import results, undisturbed


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(STOP, "code", None)


@pytest.fixture(params=VALUES)
def value(request: pytest.FixtureRequest) -> float:
    return VALUES[request.param]


@pytest.fixture
def make_trainer(process_group: Any) -> Callable[..., Trainer]:
    def make(**changed: Any) -> Trainer:
        torch.manual_seed(0)
        schedule = Schedule(**{"steps": 9, "learning_rate": 1e-3} | changed)
        return Trainer(nn.Linear(4, 2), schedule, Runtime())

    return make


def loss_of(trainer: Trainer, scale: float = 1.0) -> torch.Tensor:
    return scale * trainer.model(torch.ones(3, 4)).square().sum()


# --- one number at a time ---------------------------------------------------------------------------------------------


def test_a_loss_ends_the_step_before_the_update(make_trainer: Callable[..., Trainer], value: float) -> None:
    trainer = make_trainer()
    trainer.guard = StepGuard("warm_start", 4)
    before = trainer.copy_state()
    trainer.backward(loss_of(trainer), False, ["q1"])
    trainer.backward(loss_of(trainer) + value, True, ["q2"])
    with pytest.raises(NonFinite, match=r"warm_start: step 5: loss is .* on question q2; nothing is written"):
        trainer.step(1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.copy_state().items())


def test_a_gradient_ends_the_step_before_the_update(make_trainer: Callable[..., Trainer], value: float) -> None:
    trainer = make_trainer()
    before = trainer.copy_state()
    trainer.backward(loss_of(trainer), True, ["q1", "q2"])
    trainer.model.weight.grad[0, 0] = value  # type: ignore[index,union-attr]
    with pytest.raises(NonFinite, match=r"gradient norm is (nan|inf) on one of the questions q1, q2"):
        trainer.step(1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.copy_state().items())


def test_a_weight_is_not_written(make_trainer: Callable[..., Trainer], value: float, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.model.weight.data[1, 2] = value  # type: ignore[operator,union-attr,index]
    assert trainer.find_broken_weight() == "tensor weight: 1 of 8 values are NaN or infinite"
    with pytest.raises(BadWeights, match="the trained model: tensor weight: 1 of 8 values"):
        save_weights(trainer.model, tmp_path, trainer.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_a_saved_state_with_a_broken_weight_is_not_resumed(
    make_trainer: Callable[..., Trainer], value: float, tmp_path: Path
) -> None:
    trainer = make_trainer()
    trainer.model.weight.data[1, 2] = value  # type: ignore[operator,union-attr,index]
    trainer.save_state(tmp_path, "model")
    with pytest.raises(ValueError, match="training state of model: tensor weight: 1 of 8 values"):
        make_trainer().load_state(tmp_path, "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_every_type_of_weights_is_read(dtype: torch.dtype, value: float) -> None:
    whole = torch.ones(3, 5).to(dtype)
    assert find_broken_tensor([("a", whole), ("b", torch.zeros(0)), ("c", torch.arange(3))]) is None
    broken = torch.ones(3, 5)
    broken[2, 4] = value
    stored = broken.to(dtype)
    if dtype == torch.float8_e4m3fn and not math.isnan(value):
        return  # it has no infinity
    assert find_broken_tensor([("a", whole), ("b", stored)]) == "tensor b: 1 of 15 values are NaN or infinite"


def test_a_metric_of_a_history_is_refused(value: float) -> None:
    guard = StepGuard("ril", 2)
    guard.check_row({"step": 3, "loss": 0.5, "disc/loss": None})
    with pytest.raises(NonFinite, match=r"ril: step 3: kl/student is "):
        guard.check_row({"step": 3, "loss": 0.5, "kl/student": value})
    with pytest.raises(NonFinite, match=r"ril: step 3: reward is .* on question q7"):
        guard.check("reward", [1.0, value], ["q7"])


def test_questions_are_named_once_and_shortened() -> None:
    assert name_questions([]) == ""
    assert name_questions(["a", "a", ""]) == " on question a"
    assert name_questions(list("abcdefg")) == " on one of the questions a, b, c, d, e and 2 more"


# --- gradient spikes --------------------------------------------------------------------------------------------------


def test_the_limit_is_a_multiple_of_the_running_median() -> None:
    norms = NormHistory(10.0)
    for number in range(SETTLED):
        assert norms.limit == math.inf
        norms.add(float(number))
    assert norms.limit == 10 * (SETTLED - 1) / 2
    for _ in range(WINDOW):
        norms.add(1000.0)
    assert norms.limit == 10_000.0, "gradients that stay large are no spike for long"
    zeros = NormHistory(10.0)
    for _ in range(SETTLED):
        zeros.add(0.0)
    assert zeros.limit == math.inf


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_said_and_skipped_by_setting(make_trainer: Callable[..., Trainer], skip: bool) -> None:
    trainer, said = make_trainer(spike_factor=5.0, skip_spikes=skip), list[str]()
    trainer.guard = StepGuard("warm_start", 9, say=said.append)
    for _ in range(SETTLED):
        trainer.backward(loss_of(trainer), True)
        trainer.step(1e-5)
    assert said == []
    before = trainer.copy_state()
    trainer.backward(loss_of(trainer, 100.0), True, ["q9"])
    assert trainer.step(1e-3).grad_norm > 5 * trainer.norms.norms[0]
    unchanged = all(torch.equal(before[name], tensor) for name, tensor in trainer.copy_state().items())
    assert unchanged == skip
    (line,) = said
    assert "warm_start: step 10: gradient spike: norm" in line
    assert "100 times the median of the last steps on question q9" in line
    assert ("skipped" in line.split(";")[-1].split()[0]) == skip
    trainer.backward(loss_of(trainer), True)
    trainer.step(1e-3)
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.copy_state().items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_deepspeed_skips_a_spike_too(process_group: Any, zero_stage: Any) -> None:
    """bf16 under ZeRO: the norm is DeepSpeed's."""
    torch.manual_seed(0)
    schedule = Schedule(steps=9, learning_rate=1e-2, spike_factor=5.0, skip_spikes=True)
    trainer, said = Trainer(nn.Linear(4, 2).bfloat16(), schedule, Runtime(zero_stage=zero_stage)), list[str]()
    trainer.guard = StepGuard("ril", 0, say=said.append)
    for scale in (*[1.0] * SETTLED, 100.0):
        before = trainer.copy_state()
        trainer.backward(scale * trainer.model(torch.ones(3, 4, dtype=torch.bfloat16)).square().sum(), True)
        norm = trainer.step(1e-2).grad_norm
        same = all(torch.equal(before[name], tensor) for name, tensor in trainer.copy_state().items())
        assert same == (scale > 1)
        assert math.isfinite(norm)
    assert len(said) == 1
    assert trainer.norms.norms[-1] > 20 * trainer.norms.norms[-2]


# --- whole stages -----------------------------------------------------------------------------------------------------

STEP = 5  # of 12; a checkpoint after every step
FAULTS: dict[tuple[str, str], tuple[poison.Patch, str]] = {
    ("warm_start", "loss"): (poison.poison_loss, r"step 6: loss is"),
    ("warm_start", "log-probability"): (poison.poison_log_probs, r"step 6: loss is"),
    ("warm_start", "gradient"): (poison.poison_gradient, r"step 6: gradient norm is"),
    ("warm_start", "weight"): (poison.poison_weight, r"step 6: model: a weight is not finite \(tensor "),
    ("discriminator", "loss"): (poison.poison_discriminator_loss, r"step 6: loss is"),
    ("discriminator", "logit"): (poison.poison_logit, r"step 6: (logit of the discriminator|loss) is"),
    ("discriminator", "gradient"): (poison.poison_gradient, r"step 6: gradient norm is"),
    ("discriminator", "weight"): (poison.poison_weight, r"step 6: discriminator: a weight is not finite \(tensor "),
}
EVERY = [(*fault, name) for fault in FAULTS for name in VALUES]
QUICK = [("warm_start", "loss", "nan"), ("discriminator", "logit", "inf")]


def check_poisoned(
    folder: Path, stage: str, term: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stage ends at the poisoned step; the checkpoint of the step before stays, and the output does not appear."""
    patch, said = FAULTS[stage, term]
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / "data" / stage, ignore_errors=True)
    with monkeypatch.context() as poisoned:
        patch(poisoned, VALUES[name], STEP)
        with pytest.raises(NonFinite, match=rf"^{stage}: {said}") as raised:
            Work(stage, None, folder).run(Progress())
    text = str(raised.value)
    assert "\n" not in text
    runs = next((tmp_path / "store" / "runs" / stage).iterdir())
    kept = list_complete_checkpoints(runs)
    assert [path.name for path in kept] == ["step_00000004", "step_00000005"]
    assert f"the last good checkpoint stays and is resumed from: {kept[-1]}" in text
    if term != "weight":
        assert " on " in text, "the questions are named"
    assert not (folder / "data" / stage).exists()


@pytest.mark.parametrize(("stage", "term", "name"), QUICK)
def test_a_stage_ends_at_the_first_bad_number_and_resumes_before_it(
    stage: str, term: str, name: str, training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(training_project, stage, tmp_path, monkeypatch)
    check_poisoned(training_project, stage, term, name, monkeypatch, tmp_path)
    Work(stage, None, training_project).run(Progress())
    assert results(training_project, stage) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "term", "name"), EVERY)
def test_every_poison_ends_a_stage(
    stage: str, term: str, name: str, training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_poisoned(training_project, stage, term, name, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warm_start", "discriminator"])
@pytest.mark.parametrize("name", VALUES)
def test_a_weight_broken_by_the_last_update_is_not_written(
    stage: str, name: str, training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(training_project)
    shutil.rmtree(training_project / "data" / stage, ignore_errors=True)
    poison.poison_weight(monkeypatch, VALUES[name], 11)
    with pytest.raises(BadWeights, match=r"tensor .* values are NaN or infinite; nothing is written"):
        Work(stage, None, training_project).run(Progress())
    assert not (training_project / "data" / stage).exists()
    runs = next((tmp_path / "store" / "runs" / stage).iterdir())
    assert list_complete_checkpoints(runs)[-1].name == "step_00000011"


INPUTS = {"warm_start": "model/student", "discriminator": "warm_start", "ril": "warm_start"}


@pytest.mark.parametrize("stage", INPUTS)
def test_a_poisoned_checkpoint_is_refused_at_load(
    stage: str, value: float, training_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any engine starts; the message names the tensor. The card is that of the poisoned files."""
    monkeypatch.chdir(training_project)
    folder = training_project / "data" / INPUTS[stage]
    name = poison.poison_file(folder / "model.safetensors", value)
    write_json(folder / CARD, read_json(folder / CARD) | {"identity": hash_content(folder)})
    shutil.rmtree(training_project / "data" / stage, ignore_errors=True) if stage == "warm_start" else None
    with pytest.raises(BadWeights, match=rf"tensor {name}: 1 of [\d,]+ values are NaN or infinite"):
        Work(stage, None, training_project).run(Progress())


def test_the_spike_statistic_is_kept_over_a_resume(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = {}
    original = TrainingState._finish_step

    def noted(self: TrainingState, done: int, count: int) -> None:
        (trainer,) = self.trainers.values()
        seen[f"{len(stops)} {done}"] = list(trainer.norms.norms)
        STOP.code = 143 if done in stops else None
        original(self, done, count)

    monkeypatch.setattr(TrainingState, "_finish_step", noted)
    monkeypatch.chdir(training_project)
    stops = [5]
    with pytest.raises(SystemExit):
        Work("warm_start", None, training_project).run(Progress())
    stops, STOP.code = [], None
    Work("warm_start", None, training_project).run(Progress())
    assert len(seen["1 5"]) == 5
    assert seen["0 6"][:5] == seen["1 5"]
    assert len(seen["0 12"]) == 12


def test_nothing_non_finite_is_in_a_finished_stage(training_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(training_project)
    Work("warm_start", None, training_project).run(Progress())
    check_files(training_project / "data" / "warm_start")
    assert len(load_file(training_project / "data" / "warm_start" / "model.safetensors")) > 5


TINY = {"steps": 6, "reading_steps": 2, "rows_per_step": 4, "warmup_steps": 1, "practice_groups": 1}
MODEL_FAULTS = {
    "vision_nan": (poison.poison_gradient, "nan", 1, r"vision tower: step 2: gradient norm is nan; nothing is written"),
    "loss_inf": (poison.poison_loss, "inf", 3, r"model@student: step 4: loss is inf; the last good checkpoint stays"),
    "log_prob_minf": (poison.poison_log_probs, "-inf", 3, r"model@student: step 4: loss is inf; the last good"),
    "weight_nan": (poison.poison_weight, "nan", 5, r"model@student: step 4: model: a weight is not finite"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_tiny_model_is_not_built_of_garbage(
    fault: str, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower trains for two steps before the model does."""
    build = TINY | {"vision_steps": 2}
    folder = make_project(
        {"models": {"student": {"build": build}}, "runtime": {"checkpoint_minutes": 0.0, "keep_checkpoints": 9}}
    )
    monkeypatch.chdir(folder)
    patch, name, at, said = MODEL_FAULTS[fault]
    patch(monkeypatch, VALUES[name], at)
    with pytest.raises(NonFinite, match=said):
        Work("model", "student", folder).run(Progress())
    assert not (folder / "data" / "model" / "student").exists()


LOOP_FAULTS: dict[str, tuple[poison.Patch, str, int, str]] = {
    "score": (poison.poison_score, "nan", 2, r"ril: step 3: logit of the discriminator is nan on question "),
    "logit": (poison.poison_logit, "inf", 4, r"ril: step \d: logit of the discriminator is inf on question "),
    "gradient": (poison.poison_gradient, "-inf", 4, r"ril: step \d: gradient norm is inf on "),
    "log-probability": (poison.poison_entropies, "-inf", 2, r"ril: step 3: log-probability is -inf on question "),
    "reference": (poison.poison_reference_pass, "inf", 2, r"ril: step 3: reference log-probability is inf on "),
    "reward": (poison.poison_reward, "nan", 2, r"ril: step 3: reward is nan on question "),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LOOP_FAULTS)
def test_the_loop_ends_at_the_first_bad_number(
    fault: str, training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(training_project)
    patch, name, at, said = LOOP_FAULTS[fault]
    patch(monkeypatch, VALUES[name], at)
    closed: list[VllmEngine] = []
    close = VllmEngine.close

    def note(self: VllmEngine) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(VllmEngine, "close", note)
    with pytest.raises(NonFinite, match=said) as raised:
        Work("ril", None, training_project).run(Progress())
    assert len(set(closed)) == 2  # of the student and of the judge; each keeps 1 GiB otherwise
    assert "the last good checkpoint stays and is resumed from: " in str(raised.value)
    assert not (training_project / "data" / "ril" / "model").exists()


BREAK_ONE_RANK = """

_whole_loss, _calls = sft_loss, []


def sft_loss(network: Network, pack: Pack, response_tokens: int) -> Tensor:
    _calls.append(1)
    bad = get_ranks().rank == 1 and len(_calls) == 6
    return _whole_loss(network, pack, response_tokens) * (float("VALUE") if bad else 1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "zero_stage"), [("nan", 0), ("inf", 3)])
def test_all_ranks_end_when_one_has_a_bad_number(
    name: str, zero_stage: int, training_project: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """One line, no hang, no rank left; the question is the other rank's."""
    change(training_project, runtime={"processes": 2, "zero_stage": zero_stage})
    with (training_project / "stages" / "training" / "sft.py").open("a") as file:
        file.write(BREAK_ONE_RANK.replace("VALUE", name))
    shutil.rmtree(training_project / "data" / "warm_start")
    code, _, err = call(
        training_project, "flows.run", "warm_start", RIL_STORE=str(tmp_path / "store"), PYTHONPATH=str(training_project)
    )
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith(("error", "rank", "Traceback"))]
    assert len(errors) == 1, err
    assert f"warm_start: step 6: loss is {name} on " in errors[0]
    assert "the last good checkpoint stays and is resumed from" in errors[0]
    assert not (training_project / "data" / "warm_start").exists()

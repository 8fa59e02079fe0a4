"""The checks of the report: a healthy run passes all, and each fault is seen by its own check."""

import math
from typing import Any

import pytest

from stages.job.loss_rise import explain_loss_rise
from stages.page.checks import check_losses, collect_checks
from stages.page.evaluated_models import EvaluatedModel
from stages.page.inputs import History
from stages.page.summary import compute_relative_gain, make_summary

EXAM = {"balanced_accuracy": 0.97, "cases": 500, "attacks": 72, "attacks_held": 72}
DISCRIMINATOR = {"acc": 0.9, "acc_length_only": 0.6}
CURVES = {
    "judge/failed": [0.0] * 20,
    "disc/passed": [0.2] * 10 + [0.5] * 10,
    "frac_reward_zero_std": [0.2] * 20,
    "completions/clipped_ratio": [0.3] * 10 + [0.01] * 10,  # early cuts are no fault
    "entropy/student": [2.0] * 10 + [1.0] * 10,
}


def scored(role: str, right: int, shuffled: float = 0.2) -> EvaluatedModel:
    """A model that answers the first `right` of 100 questions."""
    rows = {str(place): {"correct": place < right, "score": float(place < right)} for place in range(100)}
    metrics: dict[str, Any] = {
        "questions": 100,
        "accuracy": right / 100,
        "standard_error": 0.04,
        "accuracy_shuffled": shuffled,
    }
    return EvaluatedModel(role, role, role, metrics | {"mean_tokens": 20.0, "truncated_share": 0.0}, rows)


def seen(
    models: dict[str, EvaluatedModel], curves: dict[str, Any], exam: dict[str, Any], before: dict[str, float]
) -> dict[str, bool]:
    history = History({"step": list(range(1, 21)), **curves})
    return {one.title: one.fine for one in collect_checks(list(models.values()), history, exam, before, {})}


MODELS = {
    "base": scored("base", 40),
    "warm_start": scored("warm_start", 50),
    "ril": scored("ril", 70),
    "teacher": scored("teacher", 95),
}


def test_a_healthy_run_passes_every_check() -> None:
    found = seen(MODELS, CURVES, EXAM, DISCRIMINATOR)
    assert len(found) == 11
    assert all(found.values())


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("The teachers are better than the student", {"models": {"teacher": scored("teacher", 51)}}),
        ("Answers depend on the images", {"models": {"ril": scored("ril", 70, shuffled=0.65)}}),
        ("The gain is significant", {"models": {"warm_start": scored("warm_start", 69)}}),
        ("The gain is significant", {"models": {"warm_start": scored("warm_start", 90)}}),  # clear, and a loss
        ("The judge resists attacks", {"exam": {"attacks_held": 71}}),
        ("Few verdicts fail", {"curves": {"judge/failed": [0.0] * 10 + [0.05] * 10}}),
        ("The discriminator uses more than length", {"before": {"acc_length_only": 0.88}}),
        ("The discriminator is in balance", {"curves": {"disc/passed": [0.3] * 10 + [0.0] * 10}}),
        ("The discriminator is in balance", {"curves": {"disc/passed": [0.3] * 10 + [1.0] * 10}}),
        ("Groups differ in reward", {"curves": {"frac_reward_zero_std": [0.6] * 20}}),
        ("Answers are complete", {"curves": {"completions/clipped_ratio": [0.0] * 10 + [0.2] * 10}}),
        ("The student still explores", {"curves": {"entropy/student": [2.0] * 10 + [0.1] * 10}}),
    ],
)
def test_each_fault_is_seen_by_its_own_check(title: str, change: dict[str, Any]) -> None:
    models, curves = MODELS | change.get("models", {}), CURVES | change.get("curves", {})
    found = seen(models, curves, EXAM | change.get("exam", {}), DISCRIMINATOR | change.get("before", {}))
    assert [name for name, fine in found.items() if not fine] == [title]


def test_a_judge_that_says_the_same_to_everything_resists_nothing() -> None:
    found = seen(MODELS, CURVES, EXAM | {"balanced_accuracy": 0.5}, DISCRIMINATOR)
    assert [name for name, fine in found.items() if not fine] == [
        "The judge is accurate",
        "The judge resists attacks",
    ]


def test_a_loss_that_rises_is_said() -> None:
    """learning_rate 0.99 took the warm start from 2.4 to 182."""
    losses = {"warm_start": [2.4, 60.0, 182.0], "discriminator": [0.69, 0.4, 0.3], "none": None}
    (check,) = check_losses(losses)
    assert not check.fine
    assert check.text == "warm_start: the loss is 182 at the end, 2.4 at the start; its learning rate is too high."


@pytest.mark.parametrize("losses", [[], [1.0], [None, None], [0.1, 0.11], [2.0, 1.0], [0.0, 0.0], [0.107, 0.2, 0.099]])
def test_noise_is_no_rise(losses: list[float | None]) -> None:
    assert explain_loss_rise(losses) is None


def test_what_was_not_measured_is_not_judged() -> None:
    assert collect_checks([MODELS["base"]], History({"step": [1.0], "judge/failed": [math.nan]}), None, {}, {}) == []


def test_the_summary_holds_gains_and_nothing_that_is_no_number() -> None:
    ril = History({"step": [1.0, 2.0], "rewards/answer": [0.2, math.nan], "kl/student": [math.nan, math.nan]})
    found = make_summary(list(MODELS.values()), ril, History({"step": [0.0, 2.0], "validation": [0.4, 0.6]}))
    assert found["gain_over_warm_start"] == pytest.approx(0.2)
    assert found["gain_over_base"] == pytest.approx(0.3)
    assert found["gain_over_base_error"] == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert (found["answer_reward"], found["validation_start"], found["validation_end"]) == (0.2, 0.4, 0.6)
    assert "kl" not in found
    assert compute_relative_gain(found) == (pytest.approx(0.75), pytest.approx(math.sqrt(0.3 * 0.7 / 99) / 0.4))
    assert make_summary([MODELS["base"]], ril, ril) == {}
    assert (
        compute_relative_gain({"gain_over_base": 0.1, "base": 0.0}) is None
    )  # a base that answers nothing has no per cent

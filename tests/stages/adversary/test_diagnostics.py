"""Calibration, the floor of length, and alarms on synthetic curves (traps T33, T34)."""

import math
import random

import pytest

from stages.adversary.diagnostics import calibration_error, check_pretraining, check_saturation, length_accuracy


def test_a_calibrated_discriminator_has_no_error_and_a_sure_wrong_one_has_much() -> None:
    draw = random.Random(0)
    shares = [draw.random() for _ in range(20_000)]
    logits = [math.log(p / (1 - p)) for p in shares]
    labels = [int(draw.random() < p) for p in shares]
    assert calibration_error(logits, labels) < 0.02
    assert calibration_error([5 * z for z in logits], labels) > 0.1
    assert calibration_error([1000.0, -1000.0], [0, 1]) == pytest.approx(1.0)


def test_length_alone() -> None:
    assert length_accuracy([1, 2, 3], [7, 8, 9]) == 1.0
    assert length_accuracy([7, 8, 9], [1, 2, 3]) == 1.0
    assert length_accuracy([1, 2, 3, 4], [1, 2, 3, 4]) == 0.5


@pytest.mark.parametrize(
    ("acc", "length", "part"),
    [(0.99, 0.98, "length alone"), (0.99, 0.6, "lower discriminator.steps"), (0.5, 0.5, "raise discriminator.steps")],
)
def test_pretraining_alarms(acc: float, length: float, part: str) -> None:
    assert part in str(check_pretraining({"acc": acc, "acc_length_only": length}))
    assert check_pretraining({"acc": 0.8, "acc_length_only": length}) is None


def curve(*shares: float | None) -> list[dict[str, float | None]]:
    return [{"disc/passed": share} for share in shares]


def test_saturation_alarms_only_after_so_many_steps_in_a_row() -> None:
    assert "too strong" in str(check_saturation(curve(0.5, *[0.0] * 10), 10))
    assert "too weak" in str(check_saturation(curve(*[1.0] * 10), 10))
    assert check_saturation(curve(*[0.0] * 9), 10) is None
    assert check_saturation(curve(*[0.0] * 9, 0.3), 10) is None
    assert check_saturation(curve(*[0.0] * 9, None), 10) is None
    assert check_saturation([{} for _ in range(20)], 10) is None

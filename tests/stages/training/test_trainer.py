"""One step of the trainer is AdamW on clipped gradients at the rate of the step; rates by step; copies stay."""

from typing import Any

import pytest
import torch
from torch import nn

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.trainer import Trainer, learning_rate


def schedule(**changed: Any) -> Schedule:
    return Schedule(**{"steps": 10, "learning_rate": 1e-2, **changed})


def test_a_step_is_adamw_on_clipped_gradients_at_the_rate_of_the_step() -> None:
    """By hand (Loshchilov and Hutter, Algorithm 2): two passes a step, four steps with gradients of different size."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    weight, first, second = model.weight.detach().double().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    trainer = Trainer(model, schedule(weight_decay=0.3, max_grad_norm=0.5), Runtime())
    for step, rate in enumerate((1e-2, 3e-2, 2e-2, 1e-3), 1):
        inputs = torch.randn(2, 3) * step / 4
        for place, row in enumerate(inputs):
            trainer.backward(model(row).sum(), last=place == 1)
        gradient = inputs.sum(0).double().expand(2, 3)
        norm = float(gradient.norm())
        assert trainer.step(rate).grad_norm == pytest.approx(norm, rel=1e-6)
        gradient = gradient * min(1.0, 0.5 / norm)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight *= 1 - rate * 0.3
        weight -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(model.weight.detach().double(), weight, atol=1e-6), step


def test_rates_rise_to_the_peak_and_fall_to_the_end() -> None:
    rising = schedule(warmup_steps=4, lr_scheduler_type="linear", final_learning_rate=4e-3)
    assert [learning_rate(rising, step) for step in range(10)] == pytest.approx(
        [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 9e-3, 8e-3, 7e-3, 6e-3, 5e-3]
    )
    constant = schedule(warmup_steps=2)
    assert [learning_rate(constant, step) for step in (0, 1, 2, 9)] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])


def test_a_copy_of_the_weights_stays_while_training_goes_on() -> None:
    model = nn.Linear(3, 2)
    trainer = Trainer(model, schedule(), Runtime())
    before = model.weight.detach().clone()
    copied = trainer.copy_state()
    trainer.backward(model(torch.ones(3)).sum(), last=True)
    trainer.step(0.1)
    assert torch.equal(copied["weight"], before)
    assert not torch.equal(model.weight, before)


def test_a_part_of_the_loss_counts_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed averages gradients over ranks, so that a part has to be multiplied by their number to be summed."""
    model = nn.Linear(3, 1)
    trainer, given = Trainer(model, schedule(), Runtime()), list[float]()
    monkeypatch.setattr(trainer, "_ranks", 4)
    monkeypatch.setattr(trainer._engine, "backward", lambda loss, **_: given.append(float(loss.detach())))
    loss = model(torch.ones(3)).sum()
    assert trainer.backward(loss, last=True) == pytest.approx(float(loss.detach()))
    assert given == pytest.approx([4 * float(loss.detach())])

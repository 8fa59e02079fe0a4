"""C4 and C10: what is known of the objective and of the discriminator in closed form."""

from collections.abc import Callable

import pytest
import torch

from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text, discriminator_loss
from stages.adversary.prompt import make_discriminator_group
from stages.groups.pack import make_packs
from stages.policy.loss import LossInputs, policy_loss
from stages.policy.rewards import similarity_reward
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader


@pytest.mark.parametrize("ratio", ["token", "sequence", "gspo"])
def test_c4_at_one_inner_update_every_ratio_is_one_and_gives_reinforce(ratio: str) -> None:
    draw = torch.Generator().manual_seed(0)
    log_probs = (-3 * torch.rand(40, generator=draw, dtype=torch.float64)).requires_grad_()
    response = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 20, 7, 12]))
    advantages = torch.randn(4, generator=draw, dtype=torch.float64)[response]
    policy = LossInputs(advantages, log_probs.detach(), 0.2, 0.2, 0.0, 64.0, ratio=ratio, response=response)  # type: ignore[arg-type]
    loss, seen = policy_loss(log_probs, log_probs.detach(), policy)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert bool((seen["ratio"] == 1).all())
    assert not seen["clip_ratio"].any()
    assert torch.allclose(gradient, -advantages / 64, atol=1e-15)


def test_c10_bce_is_equation_1_and_its_gradient() -> None:
    """max (1/N) sum [log D(student) + log(1 - D(teacher))], differentiated through D itself, is -2 times ours."""
    logits = torch.tensor([0.3, -2.0, 1.5, -0.1, 30.0, -30.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    d = torch.sigmoid(logits)
    equation = (torch.log(d[labels > 0.5]).sum() + torch.log(1 - d[labels < 0.5]).sum()) / 3
    ours = discriminator_loss(logits, labels, torch.full_like(labels, 1 / 6))
    assert float(ours.detach()) == pytest.approx(float(-equation.detach() / 2), abs=1e-10)
    (wanted,) = torch.autograd.grad(equation, logits)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert torch.allclose(gradient, -wanted / 2, atol=1e-10)


def test_c10_exactly_zero_earns_nothing() -> None:
    assert [similarity_reward(z) for z in (0.0, -0.0, 1e-30, -1e-30, float("inf"), float("-inf"))] == [0, 0, 0, 1, 0, 1]


def test_c10_the_logit_is_read_at_the_last_token_of_each_text(tiny: Callable[[str], Checkpoint], family: str) -> None:
    """By hand: the language model over one text alone, its last hidden state times the head (traps T35, C10)."""
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 3)
    plain = load_network(checkpoint, reader)
    bodies = ["3:3,8:11", "28", "so it is 5"]
    (pack,) = DiscriminatorCollator(reader, 4096).make_packs([Text(body) for body in bodies])
    with torch.no_grad():
        together = discriminator(pack)
        for place, body in enumerate(bodies):
            (single,) = make_packs([make_discriminator_group(reader, [body])], 4096)
            hidden = plain.text(input_ids=single.ids[None]).last_hidden_state[0, -1]
            by_hand = hidden @ discriminator.score.weight[0] + discriminator.score.bias[0]
            assert float(together[place]) == pytest.approx(float(by_hand), abs=1e-5)

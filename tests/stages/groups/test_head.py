"""The head in tiles: full softmax's values and gradients, in fp32 from bf16, and no tensor larger than a tile."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stages.groups import head
from stages.groups.head import tiled_log_probs
from stages.groups.log_probs import token_full_kl


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [37, 16], weights [101, 16], targets [37]."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(37, 16, generator=generator) / 2).to(dtype).requires_grad_()  # logits of 2, up to 8
    weight = torch.randn(101, 16, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(101, (37,), generator=generator)


def full(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies by log-softmax in fp64."""
    spread = (hidden.double() @ weight.double().T / temperature).log_softmax(1)
    return spread.gather(1, targets[:, None]).squeeze(1), -(spread.exp() * spread).sum(1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("tile", [(4096, 32768), (7, 13)])
def test_values_and_gradients_are_those_of_full_softmax(
    monkeypatch: pytest.MonkeyPatch, temperature: float, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(head, "ROWS_PER_TILE", tile[0])
    monkeypatch.setattr(head, "COLUMNS_PER_TILE", tile[1])
    hidden, weight, targets = drawn()
    log_probs, entropies = tiled_log_probs(hidden, weight, targets, temperature, entropies=True)
    wanted, wanted_entropies = full(hidden, weight, targets, temperature)
    assert torch.allclose(log_probs.double(), wanted, atol=1e-5)
    assert entropies is not None
    assert torch.allclose(entropies.double(), wanted_entropies, atol=1e-5)
    ours = torch.autograd.grad(log_probs.sin().sum(), (hidden, weight))
    theirs = torch.autograd.grad(wanted.sin().sum(), (hidden, weight))
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_half_precision_matrices_are_summed_in_fp32() -> None:
    hidden, weight, targets = drawn(torch.bfloat16)
    log_probs, _ = tiled_log_probs(hidden, weight, targets)
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.double(), full(hidden, weight, targets, 1.0)[0], atol=1e-5), (
        "a bf16 logit is off by 0.03"
    )
    for gradient in torch.autograd.grad(log_probs.sum(), (hidden, weight)):
        assert gradient.dtype == torch.bfloat16


def test_no_tensor_is_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ROWS_PER_TILE", 8)
    monkeypatch.setattr(head, "COLUMNS_PER_TILE", 32)
    hidden, weight, targets = drawn()
    with Largest() as seen:
        log_probs, _ = tiled_log_probs(hidden, weight, targets, entropies=True)
        log_probs.sum().backward()
    assert seen.elements <= max(8 * 32, weight.numel(), hidden.numel())
    assert seen.elements < len(targets) * len(weight), "tokens x vocabulary was built"


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_exact_kl_in_tiles_is_that_of_full_softmax(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Two rows at a time with a vocabulary of 101: values, both gradients, and no larger tensor."""
    monkeypatch.setattr(head, "ROWS_PER_TILE", 8)
    monkeypatch.setattr(head, "COLUMNS_PER_TILE", 32)
    hidden, weight, _ = drawn()
    reference = hidden.detach() + 0.3 * torch.sin(torch.arange(37.0))[:, None]
    with Largest() as seen:
        ours = token_full_kl(hidden, weight, reference, weight.detach(), temperature)
        gradients = torch.autograd.grad(ours.sin().sum(), (hidden, weight))
    assert seen.elements <= max(8 * 32, weight.numel(), hidden.numel())
    p, q = ((states.double() @ weight.double().T / temperature).log_softmax(1) for states in (hidden, reference))
    wanted = (p.exp() * (p - q.detach())).sum(1)
    assert torch.allclose(ours.double(), wanted, atol=1e-5)
    for got, expected in zip(gradients, torch.autograd.grad(wanted.sin().sum(), (hidden, weight)), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_a_second_backward_through_kept_logits_is_refused() -> None:
    hidden, weight, targets = drawn()
    loss = tiled_log_probs(hidden, weight, targets)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

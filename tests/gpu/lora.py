"""LoRA in a few lines (arXiv 2106.09685), for the 7B-shaped model: B A x is added to each linear layer of the language
model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Adapted(nn.Module):
    """A frozen linear layer with a trained part of low rank, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.active = base, True
        device, dtype = base.weight.device, base.weight.dtype
        self.down = nn.Parameter(
            torch.randn(rank, base.in_features, device=device, dtype=dtype) / math.sqrt(base.in_features)
        )
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """The layer's output [..., out]."""
        out: Tensor = self.base(rows)
        return out + linear(linear(rows, self.down), self.up) if self.active else out


def adapt(model: nn.Module, text: nn.Module, rank: int) -> None:
    """Freezes `model` and puts a trained part beside every linear layer of `text`."""
    model.requires_grad_(False)
    for module in list(text.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(module, Adapted):
                setattr(module, name, Adapted(child, rank))


@contextmanager
def without(model: nn.Module) -> Iterator[None]:
    """The model as it was before: the reference of a LoRA run costs no second copy."""
    parts = [module for module in model.modules() if isinstance(module, Adapted)]
    for part in parts:
        part.active = False
    yield
    for part in parts:
        part.active = True

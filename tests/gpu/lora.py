"""LoRA in a few lines (arXiv 2106.09685), for a machine without peft: B A x is added to each linear layer of the
language model. As in the loop, one frozen model has several adapters, and without any it is the reference.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Adapted(nn.Module):
    """A frozen linear layer with trained parts of low rank by name, each of which starts at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.active: str | None = None
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()

    def add(self, name: str, rank: int) -> None:
        """Adds a part; it is not active yet."""
        device, dtype = self.base.weight.device, self.base.weight.dtype
        first = torch.randn(rank, self.base.in_features, device=device, dtype=dtype) / math.sqrt(self.base.in_features)
        self.down[name] = nn.Parameter(first)
        self.up[name] = nn.Parameter(torch.zeros(self.base.out_features, rank, device=device, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """The layer's output [..., out]."""
        out: Tensor = self.base(rows)
        if self.active is None:
            return out
        return out + linear(linear(rows, self.down[self.active]), self.up[self.active])


def add_adapter(model: nn.Module, text: nn.Module, name: str, rank: int) -> list[nn.Parameter]:
    """Freezes `model`, puts a part `name` beside every linear layer of `text`, selects it and returns its weights."""
    if not any(_iter_adapted(model)):
        model.requires_grad_(False)
        for module in list(text.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and not isinstance(module, Adapted):
                    setattr(module, child_name, Adapted(child))
    for part in _iter_adapted(model):
        part.add(name, rank)
    select(model, name)
    return [weights[name] for part in _iter_adapted(model) for weights in (part.down, part.up)]


def select(model: nn.Module, name: str | None) -> None:
    """Makes one adapter the active one; with None the model is as it was before: its reference, without a copy."""
    for part in _iter_adapted(model):
        part.active = name


def _iter_adapted(model: nn.Module) -> Iterator[Adapted]:
    return (module for module in model.modules() if isinstance(module, Adapted))

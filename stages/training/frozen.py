"""A frozen model whose weights are divided over the ranks, by ZeRO 3 without an optimizer."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from stages.config.runtime import Runtime
from stages.training.engine_config import make_frozen_config, start_quietly
from stages.training.ranks import MEETINGS

Result = TypeVar("Result")


class ShardedModule(nn.Module):
    """Runs computations inside a ZeRO-3 forward: all weights that are accessed, including a bare head, are gathered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Returns `compute()`."""
        return compute()


class FrozenShards:
    """The weights of a frozen model: each rank holds a part, on its GPU or in host memory.

    A layer is gathered on the GPU while it computes. All ranks must run the same passes in the same order.
    """

    def __init__(self, model: nn.Module, runtime: Runtime, keep: Tensor | None = None) -> None:
        """Shards `model`; `keep` is a weight of it that is used outside of its passes: `kept` is a whole copy."""
        self.kept = None if keep is None else keep.detach().clone()
        dtype = next(model.parameters()).dtype
        self.config = make_frozen_config(runtime, dtype, runtime.reference == "offloaded")
        self._engine = start_quietly(ShardedModule(model), self.config)
        if self.kept is not None:
            self.kept = self.kept.to(self._engine.device)

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Returns `compute()`, run without gradient and with gathered weights. All ranks must call this together."""
        with MEETINGS.attend(), torch.no_grad():
            return self._engine(compute)  # type: ignore[no-any-return]

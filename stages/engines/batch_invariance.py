"""Linear layers on CPU that compute each row alike in any batch, so that an answer depends on its own request only.

vLLM fills its batches with whatever requests are open, and a kernel for 3 rows may add up in another order than one for
300: then a token's values depend in their last bits on what else is answered, and now and then a sampled token too.
Measured on an AVX-512 machine with vLLM's oneDNN kernels, widths 128 to 4,096, one and two threads, 1 to 320 rows:
float32 rows are equal bit by bit from two rows on, and one row alone differs if the layer is 2,048 or more wide;
torch's own `Linear` differs below 16 rows; bfloat16 differs almost anywhere. Attention and sampling work row by row.

In tiles of a fixed number of rows, filled up with zeros, the kernel and its order are always the same. On GPUs vLLM has
a mode of its own for that (VLLM_BATCH_INVARIANT), which this project does not use.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

TILE_ROWS = 64  # bfloat16, 256 rows: 1.1 to 2.2 times the time of one call; 16 rows: 5 times
_FEWEST_ROWS = 2  # of float32 in oneDNN, from which on rows are equal in any batch


class RowTiles:
    """A linear layer that is called with tiles of `tile` rows, from `free_from` rows on with all rows at once."""

    def __init__(self, linear: "Callable[..., Tensor]", tile: int, free_from: float) -> None:
        self._linear, self._tile, self._free_from = linear, tile, free_from

    def __call__(self, rows: "Tensor", *arguments: "Tensor | None") -> "Tensor":
        """Returns what the layer returns for `rows` [..., width]; `arguments` are passed on."""
        import torch

        flat = rows.reshape(-1, rows.shape[-1])
        if len(flat) >= self._free_from or not len(flat):
            return self._linear(rows, *arguments)
        full = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % self._tile))
        found = torch.cat([self._linear(tile, *arguments) for tile in torch.split(full, self._tile)])[: len(flat)]
        return found.reshape(*rows.shape[:-1], found.shape[-1])


def make_batch_invariant(model: "nn.Module") -> None:
    """Makes the linear layers of a model that vLLM has loaded on CPU compute in `RowTiles`.

    To be repeated after new weights, for which vLLM chooses the kernels again.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "cpu_linear"):  # vLLM's own layers
            if module.weight.dtype == torch.float32:
                _compute_in_tiles(module, "cpu_linear", _FEWEST_ROWS, _FEWEST_ROWS)
            else:
                _compute_in_tiles(module, "cpu_linear", TILE_ROWS, torch.inf)
        elif isinstance(module, torch.nn.Linear):
            _compute_in_tiles(module, "forward", TILE_ROWS, torch.inf)


def _compute_in_tiles(layer: Any, name: str, tile: int, free_from: float) -> None:
    """Puts `RowTiles` in the place of the method `name` of `layer`, once."""
    if not isinstance(getattr(layer, name), RowTiles):
        setattr(layer, name, RowTiles(getattr(layer, name), tile, free_from))

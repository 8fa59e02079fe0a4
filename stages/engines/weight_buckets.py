"""A model's weights in buckets of bounded size, so that nothing on the way to an engine holds a second model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BUCKET_BYTES = 1 << 28  # 62 buckets for 16.6 GB; a vocabulary matrix of 7B has 1.1 GB and is a bucket of its own
_ALIGNMENT = 256  # bytes; a tensor of any dtype can begin there
Slot = tuple[str, str, list[int], int]  # of a tensor in a bucket: name, dtype, shape, first byte


@dataclass(frozen=True)
class Bucket:
    """Some tensors of a model, by name, and where each begins when they are laid one behind the other."""

    tensors: "list[tuple[str, Tensor]]"
    slots: list[Slot]
    size: int  # bytes

    @property
    def content(self) -> int:
        """The bytes of the tensors alone."""
        return sum(tensor.nbytes for _, tensor in self.tensors)

    def pack(self, buffer: "Tensor") -> None:
        """Copies the tensors into `buffer` [>= size], uint8, on any device."""
        import torch

        for (_, tensor), (*_, first) in zip(self.tensors, self.slots, strict=True):
            whole = tensor.detach().contiguous().view(-1).view(torch.uint8)
            buffer[first : first + whole.numel()].copy_(whole)


def iter_buckets(named: "Iterable[tuple[str, Tensor]]", limit: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """Yields the tensors of `named` in order, in buckets of at most `limit` bytes; a larger tensor is alone in one."""
    tensors: list[tuple[str, Tensor]] = []
    slots: list[Slot] = []
    size = 0
    for name, tensor in named:
        if tensors and size + tensor.nbytes > limit:
            yield Bucket(tensors, slots, size)
            tensors, slots, size = [], [], 0
        tensors.append((name, tensor))
        slots.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), size))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if tensors:
        yield Bucket(tensors, slots, size)


def unpack(buffer: "Tensor", slots: Iterable[Any]) -> "list[tuple[str, Tensor]]":
    """Returns the tensors that lie in `buffer` (uint8), by name, as views."""
    import torch

    found = []
    for name, kind, shape, first in slots:
        dtype = getattr(torch, kind)
        size = torch.Size(shape).numel() * dtype.itemsize
        found.append((name, buffer[first : first + size].view(dtype).view(shape)))
    return found

"""A sequence whose items are read from files, or made, when they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """Holds no item; a class of this kind says how many there are and reads one."""

    @abstractmethod
    def read_item(self, place: int) -> Item:
        """Returns item number `place`, from 0 to `len` - 1."""

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        """Returns one item, or a list of several. Raises IndexError if there is no such item."""
        if isinstance(place, slice):
            return [self.read_item(index) for index in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"item {place} of {len(self)}")
        return self.read_item(place % len(self))

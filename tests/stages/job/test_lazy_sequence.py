"""A lazy sequence is read as a list is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.job.lazy_sequence import LazySequence


class Squares(LazySequence[int]):
    def __init__(self, count: int) -> None:
        self.count, self.read = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def read_item(self, place: int) -> int:
        self.read.append(place)
        return place**2


@given(st.integers(0, 6), st.integers(-9, 9), st.slices(8))
def test_items_are_those_of_a_list_and_no_other_is_read(count: int, place: int, part: slice) -> None:
    squares, numbers = Squares(count), [number**2 for number in range(count)]
    assert list(squares) == numbers
    assert squares[part] == numbers[part]
    squares.read.clear()
    if -count <= place < count:
        assert squares[place] == numbers[place]
        assert squares.read == [range(count)[place]]
    else:
        with pytest.raises(IndexError, match=f"item {place} of {count}"):
            squares[place]
        assert not squares.read

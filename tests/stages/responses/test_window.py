"""The window of generation: when it is full, what it forgets, and whose space it frees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from stages.engines.engine import Answer
from stages.responses.requested import MissingRange
from stages.responses.window import SEGMENT_ANSWERS, Window, split_into_portions

EACH = SEGMENT_ANSWERS // 4  # answers a request


def test_a_full_window_is_empty_after_it_was_stored() -> None:
    reserved: list[int] = []

    @contextmanager
    def reserve(portion: Sequence[MissingRange]) -> Iterator[None]:
        reserved.append(len(portion))
        yield
        reserved.remove(len(portion))

    prompt: Any = SimpleNamespace(id="q")
    gaps = [MissingRange(number, 0, EACH) for number in range(6)]
    window = Window(gaps, lambda _: prompt, reserve)
    make: Any = lambda one, gap: (one.id, gap.prompt)  # noqa: E731
    requests: Iterator[Any] = window.iter_requests(make)
    assert [next(requests) for _ in range(6)] == [("q", number) for number in range(6)]
    assert reserved == [4, 2]
    full = []
    for number in (5, 0, 2, 1, 3, 4):
        window.add(number, [Answer(sample, "", (), "stop", 1, 1) for sample in range(EACH)])
        full.append(window.is_full)
        if window.is_full:
            assert [one.gap.prompt for one in window.list_finished()] == [0, 1, 2, 5]
            window.clear()
            assert reserved == [4, 2], "a portion keeps its space until all of it is stored"
    assert full == [False, False, False, True, False, False]
    window.clear()
    assert reserved == []


def test_portions_have_fixed_places() -> None:
    gaps = [MissingRange(number, 0, EACH) for number in range(9)]
    assert [len(portion) for portion in split_into_portions(iter(gaps))] == [4, 4, 1]

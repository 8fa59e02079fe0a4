"""Requests that are prepared ahead: order, how many are read, errors, and what is left undone at the end."""

import threading
from collections.abc import Iterator

import pytest

from stages.config.sampling import Sampling
from stages.engines.engine import Request
from stages.engines.preparation import Preparation

SAMPLING = Sampling(temperature=0, max_tokens=4)


def make_requests(count: int, n: int, read: list[int]) -> Iterator[Request]:
    """Yields `count` requests for `n` answers; `read` receives the number of each when it is taken."""
    for number in range(count):
        read.append(number)
        yield Request(str(number), [{"role": "user", "content": "?"}], (), SAMPLING, n, number)


def prepare(request: Request) -> str:
    if request.name == "2":
        raise ValueError("no")
    return f"{request.name} on {threading.current_thread().name}"


@pytest.mark.parametrize(("n", "ahead"), [(1, 4), (2, 2), (8, 1)])
def test_requests_come_in_order_and_at_most_so_many_answers_are_ahead(n: int, ahead: int) -> None:
    read: list[int] = []
    found = []
    with Preparation(make_requests(6, n, read), prepare, 4) as waiting:
        while (taken := waiting.take()) is not None:
            number, request, prepared = taken
            assert request.name == str(number)
            assert len(read) == min(number + 1 + ahead, 6)
            if number == 2:
                with pytest.raises(ValueError, match="no"):
                    prepared.result()
            else:
                found.append(prepared.result())
    assert found == [f"{number} on prepare_0" for number in (0, 1, 3, 4, 5)]


def test_an_early_end_prepares_no_more() -> None:
    begun: list[str] = []
    started, held = threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        begun.append(request.name)
        started.set()
        assert held.wait(10)

    with Preparation(make_requests(6, 1, []), wait, 4) as waiting:
        waiting.take()
        assert started.wait(10)
        threading.Timer(0.2, held.set).start()  # after the end, which waits for the one that has begun
    assert begun == ["0"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]

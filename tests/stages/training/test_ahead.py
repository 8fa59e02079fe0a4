"""What a step needs is made once, one step ahead, and an error belongs to its step."""

import threading

import pytest

from stages.training.ahead import preparing_ahead, preparing_beside


@pytest.mark.parametrize("first", [0, 3])
def test_every_step_gets_its_own_value_and_the_next_one_is_under_way(first: int) -> None:
    made: list[int] = []
    begun = {step: threading.Event() for step in range(7)}

    def make(step: int) -> str:
        made.append(step)
        begun[step].set()
        return f"step {step}"

    with preparing_ahead(make, 6) as take:
        for step in range(first, 6):
            assert take(step) == f"step {step}"
            assert step == 5 or begun[step + 1].wait(60)
    assert made == list(range(first, 6)), "none twice, and none behind the last"


def test_an_error_ends_the_step_that_it_belongs_to() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("broken image")
        return step

    with preparing_ahead(make, 5) as take:
        assert [take(0), take(1)] == [0, 1]
        with pytest.raises(ValueError, match="broken image"):
            take(2)
        assert take(3) == 3


def test_a_part_of_a_step_is_made_while_another_part_runs() -> None:
    goes_on = threading.Event()

    def make() -> str:
        assert goes_on.wait(60)
        return "images"

    with preparing_beside(make) as take:
        goes_on.set()  # the block runs before the value is made
        assert take() == "images"
    with pytest.raises(ZeroDivisionError), preparing_beside(lambda: 1 // 0) as take_nothing:
        take_nothing()

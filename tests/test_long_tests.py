"""Which of the long tests a run of `make test` has."""

from tests.conftest import LONG_SHARES, is_drawn

NAMES = [f"tests/test_{number}.py::test" for number in range(3000)]


def test_a_third_is_drawn_and_another_one_by_another_draw() -> None:
    share = LONG_SHARES["third"]
    drawn = [[is_drawn(name, draw, share) for name in NAMES] for draw in range(12)]
    assert all(900 < sum(one) < 1100 for one in drawn)
    assert drawn[0] != drawn[1]
    assert sum(any(column) for column in zip(*drawn, strict=True)) > 2950  # twelve draws run nearly every test
    assert drawn[3] == [is_drawn(name, 3, share) for name in NAMES]


def test_a_smaller_part_is_of_the_same_draw() -> None:
    parts = [{name for name in NAMES if is_drawn(name, 7, LONG_SHARES[part])} for part in ("twelfth", "sixth", "third")]
    assert parts[0] < parts[1] < parts[2]
    assert 200 < len(parts[0]) < 300 < 430 < len(parts[1]) < 570


def test_all_and_none_are_what_they_say() -> None:
    assert all(is_drawn(name, 1, LONG_SHARES["all"]) for name in NAMES)
    assert not any(is_drawn(name, 1, LONG_SHARES["none"]) for name in NAMES)

"""Statistics over seeds against scipy, simulation and closed forms."""

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from studies.records import StudyRecord, mark_answers
from studies.statistics import (
    Unpaired,
    adjust_p_values,
    average_by_unit,
    average_over_seeds,
    compute_difference,
    correct_differences,
    minimum_detectable,
    t_interval,
    t_test_p_value,
)

Make = Callable[..., StudyRecord]
values = st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda found: statistics.stdev(found) > 1e-6)


@given(values)
def test_the_interval_is_that_of_the_t_test(found: list[float]) -> None:
    ours = t_interval(found)
    theirs = stats.ttest_1samp(found, 0.0).confidence_interval(0.95)
    assert ours.low == pytest.approx(theirs.low, rel=1e-9, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, rel=1e-9, abs=1e-12)


def test_one_unit_has_no_interval() -> None:
    alone = t_interval([0.5])
    assert alone.mean == 0.5
    assert math.isnan(alone.half)
    assert math.isnan(minimum_detectable([0.5]))


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_detectable_difference_is_seen_in_four_of_five_repetitions(count: int) -> None:
    draw = np.random.default_rng(7)
    spread = draw.normal(size=count)
    spread = (spread - spread.mean()) / spread.std(ddof=1)  # standard deviation 1, so that the truth is known
    shift = minimum_detectable(list(spread))
    sample = draw.normal(shift, 1.0, size=(20_000, count))
    seen = stats.ttest_1samp(sample, 0.0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.015)


def test_seeds_of_one_world_count_once_beside_another_world(record: Make) -> None:
    assert average_by_unit({(1, 1): 0.2, (1, 2): 0.4, (2, 1): 0.9}) == pytest.approx([0.3, 0.9])
    assert average_by_unit({(1, 1): 0.2, (1, 2): 0.4}) == [0.2, 0.4]
    assert (
        average_over_seeds([record("a", 1, 0.2, seed=1), record("a", 1, 0.4, seed=2), record("a", 2, 0.9)]).units == 2
    )


def test_a_difference_is_paired_by_seed_and_by_question(record: Make) -> None:
    first = [record("a", world, 0.6) for world in (1, 2, 3)]
    second = [record("b", 1, 0.5), record("b", 2, 0.5), record("b", 4, 0.1)]
    found = compute_difference(first, second)
    assert found is not None
    assert (found.seeds.units, found.seeds.mean) == (2, pytest.approx(0.1))
    assert (found.wins, found.losses) == (20, 0)
    assert found.pooled == pytest.approx(0.1)
    assert found.low <= found.pooled <= found.high
    assert found.p_value == pytest.approx(2 * 0.5**20)


def test_answers_without_a_verdict_are_neither_right_nor_wrong(record: Make) -> None:
    first = [record("a", world, 0.6, right="1" * 50 + "-" * 10 + "0" * 40) for world in (1, 2)]
    second = [record("b", world, 0.5, right="1" * 45 + "-" * 10 + "0" * 45) for world in (1, 2)]
    found = compute_difference(first, second)
    assert found is not None
    assert (found.left_out, found.wins, found.losses) == (30, 0, 0)  # 45 to 49 are right in one and open in the other
    turned = compute_difference(second, first)
    assert turned is not None
    assert (turned.left_out, turned.wins, turned.losses) == (30, 0, 0)
    with pytest.raises(Unpaired, match="no question on which both have a verdict"):
        compute_difference([record("a", 1, 0.6, right="-" * 100)], [record("b", 1, 0.5)])


def test_marks_tell_no_verdict_from_wrong() -> None:
    assert mark_answers([{"correct": True}, {"correct": None}, {"correct": False}]) == "1-0"


def test_arms_without_a_common_seed_have_no_difference(record: Make) -> None:
    assert compute_difference([record("a", 1, 0.6)], [record("b", 2, 0.5)]) is None


def test_answers_to_other_questions_are_not_compared(record: Make) -> None:
    with pytest.raises(Unpaired, match="answered different questions"):
        compute_difference([record("a", 1, 0.6)], [record("b", 1, 0.5, questions_sha256="others")])


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=5))
def test_turned_round_a_difference_changes_its_sign_alone(record: Make, shares: list[tuple[int, int]]) -> None:
    first = [record("a", world, a / 100) for world, (a, _) in enumerate(shares)]
    second = [record("b", world, b / 100) for world, (_, b) in enumerate(shares)]
    there, back = compute_difference(first, second), compute_difference(second, first)
    assert there is not None
    assert back is not None
    assert there.seeds.mean == pytest.approx(-back.seeds.mean)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert {there.verdict, back.verdict} in ({"more", "less"}, {"open"})
    assert there.unit_p_value == pytest.approx(back.unit_p_value)


@given(values)
def test_p_is_that_of_the_t_test_and_5_percent_where_the_interval_ends_at_zero(found: list[float]) -> None:
    assert t_test_p_value(found) == pytest.approx(float(stats.ttest_1samp(found, 0.0).pvalue))
    low = t_interval(found).low
    assert t_test_p_value([value - low for value in found]) == pytest.approx(0.05)


def test_p_without_a_spread_or_with_one_value() -> None:
    assert (t_test_p_value([0.1, 0.1]), t_test_p_value([0.0, 0.0])) == (0.0, 1.0)
    assert math.isnan(t_test_p_value([0.1]))


def test_holms_correction_is_the_one_of_its_definition() -> None:
    """By hand: 4 x 0.01, 3 x 0.013 (not below the former), 2 x 0.02, 1 x 0.6; nan is not counted."""
    assert adjust_p_values([0.02, 0.01, math.nan, 0.6, 0.013]) == pytest.approx(
        [0.04, 0.04, math.nan, 0.6, 0.04], nan_ok=True
    )
    assert adjust_p_values([0.4, 0.5]) == [0.8, 0.8]
    assert adjust_p_values([0.6, 0.9]) == [1.0, 1.0]
    assert adjust_p_values([]) == []


def test_a_difference_that_only_the_interval_supports_is_no_longer_significant_among_many(record: Make) -> None:
    first = [record("a", world, share) for world, share in enumerate((0.60, 0.58, 0.65))]
    found = compute_difference(first, [record("b", world, 0.5) for world in range(3)])
    assert found is not None
    assert found.unit_p_value == found.holm_p_value
    assert 0.01 < found.unit_p_value < 0.05
    assert found.verdict == "more"
    back = compute_difference([record("b", world, 0.5) for world in range(3)], first)
    assert back is not None
    corrected = correct_differences([found, back, found, found, found])
    assert [one.holm_p_value for one in corrected] == pytest.approx([5 * found.unit_p_value] * 5)
    assert [one.verdict for one in corrected[:2]] == ["more_alone", "less_alone"]

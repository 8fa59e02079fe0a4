"""Paired comparison: intervals that cover the truth, McNemar's p as in the tables, records that belong together."""

import numpy as np
import pytest

from stages.benchmarks.comparing import bootstrap_interval, compare_records, mcnemar_p_value
from stages.benchmarks.predictions import BenchmarkRecord
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scores import BenchmarkReply


def record(right: list[bool], benchmark: str = "seedbench", count: int | None = None) -> BenchmarkRecord:
    samples = [Sample(str(n), "q", "A", {"A": "x", "B": "y"}) for n in range(count or len(right))]
    replies = {str(n): BenchmarkReply(str(n), "A" if hit else "B") for n, hit in enumerate(right)}
    return BenchmarkRecord(benchmark, {"source": "f"}, samples, replies, {})


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (10, 2, 158 / 4096),
        (2, 10, 158 / 4096),
        (6, 0, 2 / 64),
        (1000, 1000, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial(wins: int, losses: int, p: float) -> None:
    assert mcnemar_p_value(wins, losses) == pytest.approx(p)


def test_wins_losses_and_the_difference() -> None:
    found = compare_records(
        record([True] * 70 + [False] * 30), record([True] * 50 + [False] * 40 + [True] * 10), "ours"
    )
    assert (found.first, found.second, found.wins, found.losses) == (70, 60, 20, 10)
    assert found.difference == pytest.approx(10)
    assert found.low < 10 < found.high
    assert found.p_value == pytest.approx(mcnemar_p_value(20, 10))
    assert found == compare_records(
        record([True] * 70 + [False] * 30), record([True] * 50 + [False] * 40 + [True] * 10), "ours"
    )


def test_the_interval_is_that_of_the_normal_law_for_many_rows() -> None:
    draw = np.random.default_rng(1)
    differences = draw.choice([-1.0, 0.0, 1.0], size=4000, p=[0.2, 0.5, 0.3])
    low, high = bootstrap_interval(differences, 0)
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert low == pytest.approx(differences.mean() - half, abs=0.002)
    assert high == pytest.approx(differences.mean() + half, abs=0.002)


def test_equal_models_differ_by_nothing() -> None:
    found = compare_records(record([True, False, True]), record([True, False, True]), "ours")
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_rows_without_an_answer_are_left_out_and_counted() -> None:
    found = compare_records(record([True] * 3, count=5), record([True] * 5), "ours")
    assert (found.pairs, found.left_out) == (3, 2)


def test_only_like_is_compared_with_like() -> None:
    with pytest.raises(BenchmarkError, match="different benchmarks"):
        compare_records(record([True]), record([True], "ai2d"), "ours")
    with pytest.raises(BenchmarkError, match="rows of the two runs differ"):
        compare_records(record([True, True]), record([True]), "ours")
    with pytest.raises(BenchmarkError, match="no row was decided"):
        compare_records(record([], count=2), record([True, True]), "ours")

"""Comparison of two models on the same rows: paired differences with bootstrap intervals, and McNemar's test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.benchmarks.predictions import BenchmarkRecord
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sample import BenchmarkError
from stages.benchmarks.scorers import Profile
from stages.benchmarks.scores import ScoredUnit, score_units

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # per cent
_AT_A_TIME = 2_000_000  # sampled indices in memory: 16 MB


@dataclass(frozen=True)
class Comparison:
    """A minus B on one benchmark, in per cent of the score."""

    benchmark: str
    pairs: int  # rows (questions, if rotations count together) decided for both
    first: float
    second: float
    difference: float
    low: float  # 95 % interval of the difference
    high: float
    wins: int  # A correct, B wrong
    losses: int
    p_value: float | None  # of McNemar's exact test; None for graded scores
    left_out: int  # rows undecided for one of them


def compare_records(one: BenchmarkRecord, other: BenchmarkRecord, profile: Profile, seed: int = 0) -> Comparison:
    """Returns the paired comparison of two records of the same benchmark; every row has the same weight.

    Raises BenchmarkError for records of different benchmarks or different rows, or without a common decided row.
    """
    if one.benchmark != other.benchmark:
        raise BenchmarkError(f"{one.benchmark} and {other.benchmark} are different benchmarks; compare like with like")
    if [sample.to_row() for sample in one.samples] != [sample.to_row() for sample in other.samples]:
        files = f"{one.manifest.get('source')} and {other.manifest.get('source')}"
        raise BenchmarkError(
            f"{one.benchmark}: the rows of the two runs differ ({files}); evaluate both on the same file"
        )
    scores = [_score_by_index(record, profile) for record in (one, other)]
    shared = [index for index in scores[0] if index in scores[1]]
    if not shared:
        raise BenchmarkError(f"{one.benchmark}: no row was decided for both under profile {profile}")
    first = np.array([scores[0][index] for index in shared])
    second = np.array([scores[1][index] for index in shared])
    low, high = bootstrap_interval(first - second, seed)
    wins, losses = int((first > second).sum()), int((first < second).sum())
    graded = bool(((first % 1) != 0).any() or ((second % 1) != 0).any())
    return Comparison(
        one.benchmark,
        len(shared),
        100 * float(first.mean()),
        100 * float(second.mean()),
        100 * float((first - second).mean()),
        100 * low,
        100 * high,
        wins,
        losses,
        None if graded else mcnemar_p_value(wins, losses),
        len(set(scores[0]) | set(scores[1])) - len(shared),
    )


def _score_by_index(record: BenchmarkRecord, profile: Profile) -> Mapping[str, float]:
    marks: Sequence[ScoredUnit] = score_units(
        find_benchmark(record.benchmark), record.samples, record.replies, profile, record.cot, record.judge
    )
    return {mark.index: mark.outcome.score for mark in marks if mark.outcome.state in ("ok", "unparsed")}


def bootstrap_interval(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of paired differences, resampling rows."""
    draw, count = np.random.default_rng(seed), len(differences)
    rounds = max(1, _AT_A_TIME // count)
    means = []
    for start in range(0, RESAMPLES, rounds):
        places = draw.integers(count, size=(min(rounds, RESAMPLES - start), count))
        means.append(differences[places].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), INTERVAL)
    return float(low), float(high)


def mcnemar_p_value(wins: int, losses: int) -> float:
    """Returns the two-sided exact p-value of McNemar's test."""
    total, fewer = wins + losses, min(wins, losses)
    if total == 0:
        return 1.0
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    tail = sum(math.exp(one - total * math.log(2)) for one in logs)
    return min(1.0, 2 * tail)

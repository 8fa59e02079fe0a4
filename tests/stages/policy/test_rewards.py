"""Every switch of the rewards, by hand on a group of 2 + 2."""

import math
from dataclasses import replace
from typing import Any

import pytest

from stages.config.objective import PAPER
from stages.config.own_rewards import Reward
from stages.groups.response import STUDENT, Response
from stages.policy.rewards import ScoredResponse, compute_similarities, grpo_advantages, score_group, score_groups

LOGITS = [1.0, -1.0, -2.0, 0.5]  # similarity 0, 1, 1, 0


def group(verdicts: tuple[int | None, ...] = (0, 1, 1, 0), reasons: tuple[str, ...] = ("stop",) * 4) -> list[Response]:
    return [
        Response(STUDENT if place < 2 else "teacher", str(place), (1, 2), reason, verdict)
        for place, (verdict, reason) in enumerate(zip(verdicts, reasons, strict=True))
    ]


def found(rows: list[Response] | None = None, **switches: Any) -> list[ScoredResponse]:
    return score_group(rows or group(), LOGITS, replace(PAPER, **switches))


def advantages(rows: list[Response] | None = None, **switches: Any) -> list[float]:
    return [row.advantage for row in found(rows, **switches)]


def test_kinds_of_similarity() -> None:
    assert compute_similarities([0.0, -0.1, 2.0], "binary") == [0, 1, 0]
    assert compute_similarities([0.0, math.log(3)], "soft") == pytest.approx([0.5, 0.25])
    assert compute_similarities([-800.0, 800.0], "soft") == pytest.approx([1.0, 0.0])
    assert compute_similarities([3.0, -1.0, 0.0, -1.0], "ranked") == pytest.approx([0.0, 2.5 / 3, 1 / 3, 2.5 / 3])
    assert compute_similarities([3.0, -1.0], "raw") == [-3.0, 1.0]
    assert compute_similarities([3.0], "ranked") == [0.0]


def test_weights_and_gate() -> None:
    assert [row.reward for row in found(similarity_weight=0.5, answer_weight=2.0)] == [0, 2.5, 2.5, 0]
    told_apart = found(group((0, 0, 1, 1)), similarity_weight=0.5, answer_weight=2.0)
    assert [row.reward for row in told_apart] == [0, 0.5, 2.5, 2.0]
    gated = found(group((0, 0, 1, 1)), similarity_gate="when_correct")
    assert [row.similarity for row in gated] == [0, 0, 1, 0]


def test_baselines() -> None:
    assert advantages(group((0, 1, 1, 1))) == [-1.25, 0.75, 0.75, -0.25]
    assert advantages(group((0, 1, 1, 1)), baseline="per_source") == [-1.0, 1.0, 0.5, -0.5]
    by_style = grpo_advantages([0, 1, 1, 0])
    by_answer = grpo_advantages([0, 1, 1, 1])
    both = [s + a for s, a in zip(by_style, by_answer, strict=True)]
    assert advantages(group((0, 1, 1, 1)), baseline="per_reward") == pytest.approx(both)


def test_standard_deviation() -> None:
    ours = advantages(scale_rewards="group")
    assert ours == pytest.approx([value / (math.sqrt(4 / 3) + 1e-6) for value in (-1, 1, 1, -1)])
    assert grpo_advantages([2.0]) == [0.0]
    assert grpo_advantages([1.0, 1.0]) == [0.0, 0.0]


def test_teacher_rows() -> None:
    assert [row.term for row in found()] == ["policy"] * 4
    assert [row.term for row in found(teacher_rows="luffy")] == ["policy", "policy", "luffy", "luffy"]
    assert advantages(teacher_rows="luffy") == advantages()  # the baseline is over the union
    alone = found(teacher_rows="none")
    assert [row.response.source for row in alone] == [STUDENT] * 2
    assert [row.advantage for row in alone] == [-1, 1]
    sft = found(teacher_rows="sft", teacher_weight=0.5)
    assert [row.term for row in sft] == ["policy", "policy", "sft", "sft"]
    assert [row.advantage for row in sft] == [
        -1,
        1,
        0.5,
        0.0,
    ]  # student-only baseline; weight by share of the largest reward


def test_teachers_only_where_no_student_answer_is_right() -> None:
    assert len(found(teacher_rows="when_all_wrong")) == 2
    assert len(found(group((0, 0, 1, 1)), teacher_rows="when_all_wrong")) == 4


def test_zero_variance() -> None:
    same = group((1, 0, 0, 1))  # rewards 1, 1, 1, 1
    assert advantages(same) == [0] * 4
    assert found(same, zero_variance="drop") == []
    assert len(found(zero_variance="drop")) == 4
    flat = group((1, 0, 1, 1))  # the student's are equal; rows for cross entropy stay
    assert [row.term for row in found(flat, zero_variance="drop", teacher_rows="sft")] == ["sft", "sft"]


def test_truncated_rows() -> None:
    cut = group((1, 1, 1, 0), ("length", "stop", "stop", "stop"))
    assert [row.answer for row in found(cut)] == [0, 1, 1, 0]
    assert [row.answer for row in found(cut, truncated="as_judged")] == [1, 1, 1, 0]
    masked = found(cut, truncated="masked")
    assert [row.answer for row in masked] == [0, 1, 1, 0]
    assert [row.term for row in masked] == ["none", "policy", "policy", "policy"]
    assert [row.advantage for row in masked] == advantages(cut)  # still part of the baseline


def test_degenerate_rows_have_no_similarity_unless_the_discriminator_learns_from_them() -> None:
    """All four logits are a teacher's; two rows are cut, one is empty, one repeats itself."""
    rows = [
        Response(source, text, (1, 2), reason, 1)
        for source, text, reason in (
            (STUDENT, "so 5", "stop"),
            (STUDENT, "so 5, ", "length"),
            (STUDENT, " ", "stop"),
            ("teacher", "so 5, " * 9, "stop"),
            ("teacher", "so", "length"),
        )
    ]
    logits = [-1.0, -3.0, -2.0, -4.0, -0.5]

    def similarities(**switches: Any) -> list[float]:
        return [row.similarity for row in score_group(rows, logits, replace(PAPER, **switches))]

    assert similarities() == [1, 0, 0, 0, 0]
    assert similarities(degenerate="learned") == [1, 1, 1, 1, 1]
    assert similarities(similarity="soft")[1:] == similarities(similarity="ranked")[1:] == [0, 0, 0, 0]
    assert similarities(similarity="raw") == [1.0, 0.5, 0.5, 0.5, 0.5], "the least of the group"
    assert similarities(similarity="raw", degenerate="learned") == [1.0, 3.0, 2.0, 4.0, 0.5]
    assert [row.logit for row in score_group(rows, logits)] == logits, "metrics show what the discriminator said"


def test_failed_verdicts() -> None:
    failed = group((None, 1, 1, 0))
    assert len(found(failed)) == 3
    assert found(failed, failed_verdicts="drop_group") == []
    assert len(found(failed, answer_weight=0.0)) == 4, "without a judge nothing has failed"


def test_without_a_discriminator_the_verdict_alone_counts() -> None:
    rows = score_group(group(), None, replace(PAPER, similarity_weight=0.0, discriminator_update="none"))
    assert [row.reward for row in rows] == [0, 1, 1, 0]
    assert all(math.isnan(row.logit) for row in rows)


def test_every_logit_belongs_to_its_row() -> None:
    groups = [group(), group()[1:3], group()]
    scored = score_groups(groups, [float(place) for place in range(10)])
    assert [[row.logit for row in rows] for rows in scored] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert [[row.response for row in rows] for rows in scored] == groups


# --- functions of ril.rewards -----------------------------------------------------------------------------------------


def with_values(*values: float | None, verdicts: tuple[int | None, ...] = (0, 1, 1, 0)) -> list[Response]:
    """The group, with one function's value for each row."""
    return [replace(row, rewards=(value,)) for row, value in zip(group(verdicts), values, strict=True)]


def own(**entry: Any) -> tuple[Reward, ...]:
    return (Reward(use="length", **entry),)


def test_a_function_adds_its_weighted_value() -> None:
    rows = found(with_values(1.0, 0.5, 0.0, 2.0), functions=own(weight=-2.0))
    assert [row.reward for row in rows] == [-2.0, 1.0, 2.0, -4.0]
    assert [row.advantage for row in rows] == [-1.25, 1.75, 2.75, -3.25]
    assert [row.functions for row in rows] == [(1.0,), (0.5,), (0.0,), (2.0,)]


def test_without_functions_rewards_are_bit_for_bit_those_of_the_paper() -> None:
    weights = {"similarity_weight": 0.1, "answer_weight": 0.7}
    assert [row.reward for row in found(**weights)] == [0.1 * s + 0.7 * a for s, a in ((0, 0), (1, 1), (1, 1), (0, 0))]


@pytest.mark.parametrize("baseline", ["joint", "per_source", "per_reward"])
def test_nobody_is_trained_by_a_failure(baseline: str) -> None:
    """The part of a row where the function failed is 0, and what it has for others is as if the row were not there."""
    without = advantages(baseline=baseline)
    rows = advantages(with_values(None, 1.0, 3.0, 5.0), baseline=baseline, functions=own())
    parts = [advantage - base for advantage, base in zip(rows, without, strict=True)]
    scaled = [0.0, *grpo_advantages([1.0, 3.0, 5.0])]
    expected = {"joint": [0, -2, 0, 2], "per_source": [0, 0, -1, 1], "per_reward": scaled}[baseline]
    assert parts == pytest.approx(expected, abs=1e-12)


def test_a_function_that_fails_for_all_changes_nothing() -> None:
    rows = found(with_values(None, None, None, None), functions=own())
    assert [row.advantage for row in rows] == advantages()
    assert [row.functions for row in rows] == [(None,)] * 4


def test_a_gated_function_is_zero_for_wrong_answers_even_where_it_failed() -> None:
    rows = found(with_values(None, 1.0, None, 1.0), functions=own(gate="when_correct"))
    assert [row.functions for row in rows] == [(0.0,), (1.0,), (None,), (0.0,)]
    mean = (0.0 + 1.0 + 0.0) / 3
    assert [row.reward for row in rows] == pytest.approx([0, 3, 2 + mean, 0])


def test_a_row_without_a_verdict_leaves_the_group_with_its_function() -> None:
    rows = found(with_values(9.0, 1.0, 3.0, 5.0, verdicts=(None, 1, 1, 0)), functions=own())
    assert [row.functions for row in rows] == [(1.0,), (3.0,), (5.0,)]
    assert sum(row.advantage for row in rows) == pytest.approx(0.0)

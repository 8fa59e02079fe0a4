"""Reward metrics of a step by hand: each source by its own rows, those outside their group by what they were."""

from dataclasses import replace

import pytest

from stages.config.objective import PAPER
from stages.groups.response import STUDENT, Response
from stages.policy.metrics import reward_metrics
from stages.policy.rewards import score_groups

LOGITS = [1.0, -1.0, -2.0, 0.5, -3.0, -0.5, 2.0, -1.0]


def test_every_source_has_the_means_of_its_own_rows() -> None:
    """Two groups of a question each: verdicts, cut answers and a failed verdict, which is out of its group."""
    verdicts: list[int | None] = [1, 0, 1, 1, None, 1, 0, 1]
    reasons = ["stop", "length", "stop", "stop", "stop", "stop", "stop", "stop"]
    sources = [STUDENT, STUDENT, "a", "b"] * 2
    rows = [
        Response(source, str(place), tuple(range(place + 1)), reason, verdict)
        for place, (source, reason, verdict) in enumerate(zip(sources, reasons, verdicts, strict=True))
    ]
    groups = [rows[:4], rows[4:]]
    scored = score_groups(groups, LOGITS, replace(PAPER, truncated="as_judged", degenerate="learned"))
    found = reward_metrics(groups, scored)
    first = [[1, 0, 1, 1], [0, 1, 1, 0]]  # verdicts and similarities of the first group; of the second, without row 4:
    second = [[1, 0, 1], [1, 0, 1]]
    rewards = [[a + b for a, b in zip(*one, strict=True)] for one in (first, second)]
    advantages = [[one - sum(of) / len(of) for one in of] for of in rewards]
    assert found["rewards/similarity"] == found["rewards/student/similarity"] == pytest.approx((0 + 1 + 1) / 3)
    assert found["rewards/answer"] == found["rewards/student/answer"] == pytest.approx((1 + 0 + 1) / 3)
    for source, places in ((STUDENT, ((0, 0), (0, 1), (1, 0))), ("a", ((0, 2), (1, 1))), ("b", ((0, 3), (1, 2)))):
        own = [rewards[group][place] for group, place in places]
        assert found[f"rewards/{source}/mean"] == pytest.approx(sum(own) / len(own))
        own_advantages = [advantages[group][place] for group, place in places]
        assert found[f"rewards/{source}/advantage"] == pytest.approx(sum(own_advantages) / len(own))
    assert found["rewards/teacher/mean"] == pytest.approx((2 + 0 + 1 + 2) / 4)
    assert (found["disc/a/logit"], found["disc/b/logit"], found["disc/teacher/logit"]) == (0.0, -0.25, -0.125)
    assert found["disc/student/logit"] == pytest.approx((1 - 1 - 0.5) / 3)
    assert (found["disc/a/acc"], found["disc/b/acc"], found["disc/passed"]) == (0.5, 0.5, pytest.approx(2 / 3))
    assert found["disc/student/acc"] == pytest.approx(1 / 3)
    assert (found["completions/student/mean_length"], found["completions/b/mean_length"]) == (3.5, 6.0)
    assert (found["completions/clipped_ratio"], found["completions/teacher/clipped_ratio"]) == (0.25, 0.0)
    assert (found["judge/failed"], found["judge/teacher/failed"]) == (0.25, 0.0)
    assert found["frac_reward_zero_std"] == 0.0
    assert found["frac_correct_negative_advantage"] == 0.5, "row 0 of rows 0 and 5"


def test_nobody_fails_who_was_not_asked() -> None:
    """On-policy distillation: no judge and no rewards."""
    rows = [Response(STUDENT, "a", (1,), "stop", None), Response("b", "c", (1, 2), "stop", 1)]
    objective = replace(PAPER, similarity_weight=0.0, answer_weight=0.0, distils=True, teacher_rows="none")
    found = reward_metrics([rows], score_groups([rows], [float("nan")] * 2, objective), (), objective)
    assert found["judge/failed"] is None
    assert "judge/student/failed" not in found
    assert found["judge/b/failed"] == 0.0
    assert found["frac_reward_zero_std"] is None
    with_judge = replace(PAPER, failed_verdicts="drop_row")
    assert reward_metrics([rows], [[], []], (), with_judge)["judge/failed"] == 1.0

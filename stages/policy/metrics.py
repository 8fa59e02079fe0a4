"""What the loop logs of a step's rewards, by source; names as in TRL, verl and imitation where they have one.

`disc/<source>/...` is what the rewards were given by; `disc/acc`, `disc/loss` and so on were measured before, on texts
that were new to the discriminator (stages/adversary/adversary.py).
"""

import math
from collections.abc import Sequence

from stages.groups.response import STUDENT, TEACHERS, Row
from stages.policy.rewards import Rewarded


def reward_metrics(rows: Sequence[Row], groups: Sequence[Sequence[Rewarded]]) -> dict[str, float | None]:
    """Means of rewards and advantages for the student, each teacher and all teachers, and shares that tell a step's
    health.

    `rows` are all 2G of every question, `groups` those that stayed in their group.
    """
    rewarded = [row for group in groups for row in group]
    by_student = [row for row in rewarded if row.row.source == STUDENT]
    metrics: dict[str, float | None] = {
        "rewards/similarity": _mean([row.similarity for row in by_student]),
        "rewards/answer": _mean([row.answer for row in by_student]),
        "disc/passed": _mean([row.logit < 0 for row in by_student if _known(row)]),
    }
    for source in sorted({row.source for row in rows}):
        metrics |= _of_source(
            source, [row for row in rows if row.source == source], [row for row in rewarded if row.row.source == source]
        )
    written = [row for row in rows if row.source != STUDENT]
    if written:
        metrics |= _of_source(TEACHERS, written, [row for row in rewarded if row.row.source != STUDENT])
    return metrics | {
        "completions/clipped_ratio": metrics.get(f"completions/{STUDENT}/clipped_ratio"),
        "frac_reward_zero_std": _mean([len({row.reward for row in group}) <= 1 for group in groups if group]),
        "frac_correct_negative_advantage": _mean([row.advantage < 0 for row in by_student if row.answer]),
        "judge/failed": metrics.get(f"judge/{STUDENT}/failed"),
    }


def _of_source(source: str, rows: Sequence[Row], rewarded: Sequence[Rewarded]) -> dict[str, float | None]:
    """What is logged of one writer's rows, and of those of them that stayed."""
    scored = [row for row in rewarded if _known(row)]
    return {
        f"rewards/{source}/similarity": _mean([row.similarity for row in rewarded]),
        f"rewards/{source}/answer": _mean([row.answer for row in rewarded]),
        f"rewards/{source}/mean": _mean([row.reward for row in rewarded]),
        f"rewards/{source}/advantage": _mean([row.advantage for row in rewarded]),
        f"disc/{source}/logit": _mean([row.logit for row in scored]),
        f"disc/{source}/acc": _mean([_right(row) for row in scored]),
        f"completions/{source}/mean_length": _mean([len(row.token_ids) for row in rows]),
        f"completions/{source}/clipped_ratio": _mean([row.finish_reason == "length" for row in rows]),
        f"judge/{source}/failed": _mean([row.verdict is None for row in rows]),
    }


def _right(row: Rewarded) -> bool:
    return row.logit > 0 if row.row.source == STUDENT else row.logit < 0


def _known(row: Rewarded) -> bool:
    return not math.isnan(row.logit)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""What the loop logs of a step's rewards, by source; names as in TRL and verl where they have one."""

import math
from collections.abc import Sequence

from stages.imitation.rewards import STUDENT, Rewarded, Row


def reward_metrics(rows: Sequence[Row], groups: Sequence[Sequence[Rewarded]]) -> dict[str, float | None]:
    """Means of rewards and advantages for the student and for each teacher, and shares that say how healthy the step is."""
    rewarded = [row for group in groups for row in group]
    metrics: dict[str, float | None] = {
        "rewards/similarity": _mean([row.similarity for row in rewarded if row.row.source == STUDENT]),
        "rewards/answer": _mean([row.answer for row in rewarded if row.row.source == STUDENT]),
        "disc/passed": _mean([row.logit < 0 for row in rewarded if row.row.source == STUDENT and _known(row)]),
    }
    for source in sorted({row.source for row in rows}):
        own = [row for row in rewarded if row.row.source == source]
        metrics |= {
            f"rewards/{source}/similarity": _mean([row.similarity for row in own]),
            f"rewards/{source}/answer": _mean([row.answer for row in own]),
            f"rewards/{source}/advantage": _mean([row.advantage for row in own]),
            f"disc/{source}/logit": _mean([row.logit for row in own if _known(row)]),
            f"disc/{source}/acc": _mean([_right(row) for row in own if _known(row)]),
            f"completions/{source}/mean_length": _mean([len(row.token_ids) for row in rows if row.source == source]),
        }
    right = [row for row in rewarded if row.row.source == STUDENT and row.answer]
    return metrics | {
        "completions/clipped_ratio": _mean([row.finish_reason == "length" for row in rows if row.source == STUDENT]),
        "frac_reward_zero_std": _mean([len({row.reward for row in group}) <= 1 for group in groups if group]),
        "frac_correct_negative_advantage": _mean([row.advantage < 0 for row in right]),
        "judge/failed": _mean([row.verdict is None for row in rows if row.source == STUDENT]),
    }


def _right(row: Rewarded) -> bool:
    return row.logit > 0 if row.row.source == STUDENT else row.logit < 0


def _known(row: Rewarded) -> bool:
    return not math.isnan(row.logit)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""Rewards and advantages of a group: R = 1[D < 0.5] + verdict; A = R - mean of all 2G (§3.3, Eq. 2), and what departs
from it.

The convention is fixed here once: the discriminator's logit z is for "the student wrote it" (student 1, teacher 0), so
text that passes for a teacher's has z < 0 and earns the similarity reward; z = 0 earns nothing (strict inequality).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.config.objective import PAPER, Objective
from stages.config.rewards import Similarity as SimilarityKind
from stages.groups.response import STUDENT, Response

EPSILON = 1e-6  # beside a standard deviation, as in verl
Term = Literal["policy", "luffy", "sft", "none"]


@dataclass(frozen=True)
class ScoredResponse:
    """A response that stays in its group, with its rewards and its advantage."""

    response: Response
    logit: float  # nan where there is no discriminator
    similarity: float  # 0 or 1 unless ril.similarity says otherwise
    answer: int
    reward: float
    advantage: float  # for `sft` the weight of its cross entropy
    term: Term = "policy"  # what it is in the loss; "none" only counts in the baseline


def similarity_reward(logit: float) -> int:
    """1[D < 0.5], which is 1[z < 0]."""
    return int(logit < 0.0)


def compute_similarities(logits: Sequence[float], kind: SimilarityKind) -> list[float]:
    """The similarity reward of each response of a group.

    `binary` (paper); `soft`: 1 - D; `ranked`: share of the group's other logits above one's own, ties by half (in-group
    scaling, which Masters' continuous reward needed); `raw`: -z (GAD).
    """
    if kind == "binary":
        return [similarity_reward(logit) for logit in logits]
    if kind == "soft":
        return [1 / (1 + math.exp(min(logit, 700.0))) for logit in logits]
    if kind == "raw":
        return [-logit for logit in logits]
    others = max(1, len(logits) - 1)
    return [sum((z > own) + 0.5 * (z == own) for z in logits) / others - 0.5 / others for own in logits]


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the group; no standard deviation (Dr.GRPO)."""
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def grpo_advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean, divided by the standard deviation of the group (GRPO; n - 1 in the denominator)."""
    centred = group_advantages(rewards)
    if len(centred) < 2:
        return centred
    deviation = math.sqrt(sum(value * value for value in centred) / (len(centred) - 1))
    return [value / (deviation + EPSILON) for value in centred]


def score_groups(
    groups: Sequence[Sequence[Response]], logits: Sequence[float] | None, objective: Objective = PAPER
) -> list[list[ScoredResponse]]:
    """`score_group` of every group; `logits` are those of all responses in order, None without a discriminator."""
    rest = iter(logits or ())
    return [score_group(group, None if logits is None else [next(rest) for _ in group], objective) for group in groups]


def score_group(
    rows: Sequence[Response], logits: Sequence[float] | None, objective: Objective = PAPER
) -> list[ScoredResponse]:
    """The rows that stay in their group, with rewards and advantages; empty where the whole group leaves.

    A failed verdict takes its row out of the group and out of the baseline, or the group with it (trap T28). A cut
    answer has answer reward 0, as in Dr.GRPO's code; the paper is silent. `logits` is None where there is no
    discriminator.
    """
    scores = [math.nan] * len(rows) if logits is None else list(logits)
    pairs = list(zip(rows, scores, strict=True))
    if objective.uses_judge:
        if objective.failed_verdicts == "drop_group" and any(row.verdict is None for row in rows):
            return []
        pairs = [(row, logit) for row, logit in pairs if row.verdict is not None]
    pairs = [(row, logit) for row, logit in pairs if row.source == STUDENT or _takes_part(pairs, objective)]
    answers = [_answer_reward(row, objective) for row, _ in pairs]
    similarity: list[float] = [0.0] * len(pairs)
    if logits is not None and objective.similarity_weight > 0:
        similarity = compute_similarities([logit for _, logit in pairs], objective.similarity)
        if objective.similarity_gate == "when_correct":
            similarity = [value if answer else 0.0 for value, answer in zip(similarity, answers, strict=True)]
    rewards = [
        objective.similarity_weight * s + objective.answer_weight * a for s, a in zip(similarity, answers, strict=True)
    ]
    in_group = [
        at for at, (row, _) in enumerate(pairs) if not (row.source != STUDENT and objective.teacher_rows == "sft")
    ]
    advantages = _compute_advantages([row for row, _ in pairs], similarity, answers, rewards, in_group, objective)
    flat = objective.zero_variance == "drop" and len({rewards[at] for at in in_group}) <= 1
    group = set(in_group)
    return [
        ScoredResponse(
            row, logit, similarity[at], answers[at], rewards[at], advantages[at], _choose_term(row, objective)
        )
        for at, (row, logit) in enumerate(pairs)
        if not (flat and at in group)
    ]


def select_trainable(responses: Sequence[Response], objective: Objective = PAPER) -> list[Response]:
    """The responses that may be trained on, whatever their verdicts turn out to be."""
    return [one for one in responses if one.source == STUDENT or objective.teacher_rows != "none"]


def _takes_part(pairs: Iterable[tuple[Response, float]], objective: Objective) -> bool:
    """Whether teacher rows are trained on in this group."""
    if objective.teacher_rows == "when_all_wrong":
        return not any(row.source == STUDENT and _answer_reward(row, objective) for row, _ in pairs)
    return objective.teacher_rows != "none"


def _answer_reward(row: Response, objective: Objective) -> int:
    if row.finish_reason != "stop" and objective.truncated != "as_judged":
        return 0
    return 1 if row.verdict else 0


def _choose_term(row: Response, objective: Objective) -> Term:
    if row.finish_reason != "stop" and objective.truncated == "masked":
        return "none"
    if row.source == STUDENT:
        return "policy"
    return {"luffy": "luffy", "sft": "sft"}.get(objective.teacher_rows, "policy")  # type: ignore[return-value]


def _compute_advantages(
    rows: Sequence[Response],
    similarity: Sequence[float],
    answers: Sequence[int],
    rewards: Sequence[float],
    in_group: Sequence[int],
    objective: Objective,
) -> list[float]:
    """An advantage for every row; rows that are not in the group (`sft`) get their share of the largest reward as
    weight.
    """
    largest = objective.similarity_weight + objective.answer_weight
    advantages = [0.0] * len(rows)
    for at in set(range(len(rows))) - set(in_group):
        advantages[at] = objective.teacher_weight * rewards[at] / largest
    sides = [in_group]
    if objective.baseline == "per_source":
        sides = [[at for at in in_group if (rows[at].source == STUDENT) == student] for student in (True, False)]
    scaled = grpo_advantages if objective.scale_rewards == "group" else group_advantages
    for side in sides:
        if objective.baseline == "per_reward":
            by_style = grpo_advantages([similarity[at] for at in side])
            by_answer = grpo_advantages([answers[at] for at in side])
            found = [
                objective.similarity_weight * s + objective.answer_weight * a
                for s, a in zip(by_style, by_answer, strict=True)
            ]
        else:
            found = scaled([rewards[at] for at in side])
        for at, advantage in zip(side, found, strict=True):
            advantages[at] = advantage
    return advantages

"""Rewards and advantages of a group: R = 1[D < 0.5] + verdict; A = R - mean of all 2G (§3.3, Eq. 2), and variants.

Functions of `ril.rewards` add their values to R. Where one has failed for a response, R has the mean of the function's
values in the group: its part of the advantage is 0, and the other parts are as without the failure.

Sign convention: the discriminator's logit z is for the class student (student 1, teacher 0). Text classified as a
teacher's has z < 0 and gets the similarity reward; z = 0 gets none (strict inequality).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.config.objective import PAPER, Objective
from stages.config.rewards import Similarity as SimilarityKind
from stages.groups.response import STUDENT, Response

EPSILON = 1e-6  # added to the standard deviation, as in verl
Term = Literal["policy", "luffy", "sft", "none"]


@dataclass(frozen=True)
class ScoredResponse:
    """A response that remains in its group, with its rewards and its advantage."""

    response: Response
    logit: float  # nan without a discriminator
    similarity: float  # 0 or 1 with ril.similarity: binary
    answer: int
    reward: float
    advantage: float  # for term `sft`, the weight of its cross entropy
    term: Term = "policy"  # its loss term; "none" counts only in the baseline
    functions: tuple[float | None, ...] = ()  # values of the functions of ril.rewards, gated; None: failed


def similarity_reward(logit: float) -> int:
    """1[D < 0.5], which is 1[z < 0]."""
    return int(logit < 0.0)


def compute_similarities(logits: Sequence[float], kind: SimilarityKind) -> list[float]:
    """Returns the similarity reward of each response of a group.

    `binary` (paper); `soft`: 1 - D; `ranked`: share of the group's other logits above this one, ties count half
    (in-group scaling, required by the continuous reward of Masters); `raw`: -z (GAD).
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
    """Returns each reward minus the mean of the group; no standard deviation (Dr.GRPO)."""
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def grpo_advantages(rewards: Sequence[float]) -> list[float]:
    """Returns (reward - mean) / standard deviation of the group (GRPO; n - 1 in the denominator of the variance)."""
    centred = group_advantages(rewards)
    if len(centred) < 2:
        return centred
    deviation = math.sqrt(sum(value * value for value in centred) / (len(centred) - 1))
    return [value / (deviation + EPSILON) for value in centred]


def score_groups(
    groups: Sequence[Sequence[Response]], logits: Sequence[float] | None, objective: Objective = PAPER
) -> list[list[ScoredResponse]]:
    """Applies `score_group` to each group; `logits` covers all responses in order, None without a discriminator."""
    rest = iter(logits or ())
    return [score_group(group, None if logits is None else [next(rest) for _ in group], objective) for group in groups]


def score_group(
    rows: Sequence[Response], logits: Sequence[float] | None, objective: Objective = PAPER
) -> list[ScoredResponse]:
    """Returns the rows that remain in their group, with rewards and advantages; empty if the whole group is dropped.

    A failed verdict removes its row from the group and the baseline, or drops the group (trap T28). A truncated answer
    has answer reward 0, as in the code of Dr.GRPO; the paper does not specify this. Unless `discriminator.degenerate`
    is "learned", a truncated, empty or repeating answer has the least similarity: 0, or with `raw` that of the group.
    `logits` is None without a discriminator.
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
        if objective.degenerate == "unrewarded":
            least = min(similarity, default=0.0) if objective.similarity == "raw" else 0.0
            similarity = [value if row.is_whole else least for value, (row, _) in zip(similarity, pairs, strict=True)]
        if objective.similarity_gate == "when_correct":
            similarity = [value if answer else 0.0 for value, answer in zip(similarity, answers, strict=True)]
    rewards = [
        objective.similarity_weight * s + objective.answer_weight * a for s, a in zip(similarity, answers, strict=True)
    ]
    in_group = [
        at for at, (row, _) in enumerate(pairs) if not (row.source != STUDENT and objective.teacher_rows == "sft")
    ]
    functions = [_gate(row.rewards, answer, objective) for (row, _), answer in zip(pairs, answers, strict=True)]
    sides = _split_baseline([row for row, _ in pairs], in_group, objective)
    for number, own in enumerate(objective.functions):
        for side in sides:
            values = replace_failed([functions[at][number] for at in side])
            for at, value in zip(side, values, strict=True):
                rewards[at] += own.weight * value
    parts = _Parts(similarity, answers, functions, rewards)
    advantages = _compute_advantages(parts, sides, objective)
    flat = objective.zero_variance == "drop" and len({rewards[at] for at in in_group}) <= 1
    group = set(in_group)
    return [
        ScoredResponse(
            row,
            logit,
            similarity[at],
            answers[at],
            rewards[at],
            advantages[at],
            _choose_term(row, objective),
            functions[at],
        )
        for at, (row, logit) in enumerate(pairs)
        if not (flat and at in group)
    ]


def select_trainable(responses: Sequence[Response], objective: Objective = PAPER) -> list[Response]:
    """Returns the responses that may be trained on, independent of their verdicts."""
    return [one for one in responses if one.source == STUDENT or objective.teacher_rows != "none"]


def _takes_part(pairs: Iterable[tuple[Response, float]], objective: Objective) -> bool:
    """Returns whether teacher rows are trained on in this group."""
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
    if row.teacher_log_probs == ():  # a teacher lacks one of its tokens
        return "none"
    if row.source == STUDENT:
        return "policy"
    return {"luffy": "luffy", "sft": "sft"}.get(objective.teacher_rows, "policy")  # type: ignore[return-value]


def replace_failed(values: Sequence[float | None]) -> list[float]:
    """Returns the values, with the mean of the others in place of None; 0 everywhere if there are no others."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    return [mean if value is None else value for value in values]


def _gate(values: Sequence[float | None], answer: int, objective: Objective) -> tuple[float | None, ...]:
    """Returns the values of the functions; 0 for a wrong answer where the function counts for correct ones only."""
    gates = (own.gate == "when_correct" for own in objective.functions)
    return tuple(0.0 if gated and not answer else value for value, gated in zip(values, gates, strict=True))


def _split_baseline(rows: Sequence[Response], in_group: Sequence[int], objective: Objective) -> list[list[int]]:
    """Returns the places of the rows that share a baseline."""
    if objective.baseline != "per_source":
        return [list(in_group)]
    return [[at for at in in_group if (rows[at].source == STUDENT) == student] for student in (True, False)]


@dataclass(frozen=True)
class _Parts:
    """The rewards of the rows of a group, by part and in all."""

    similarity: Sequence[float]
    answers: Sequence[int]
    functions: Sequence[tuple[float | None, ...]]
    rewards: Sequence[float]


def _compute_advantages(parts: _Parts, sides: Sequence[Sequence[int]], objective: Objective) -> list[float]:
    """Returns the advantage of each row; rows outside all sides (`sft`) get teacher_weight * reward / max reward."""
    largest = objective.similarity_weight + objective.answer_weight
    advantages = [0.0] * len(parts.rewards)
    for at in set(range(len(parts.rewards))) - {at for side in sides for at in side}:
        advantages[at] = objective.teacher_weight * parts.rewards[at] / largest
    scaled = grpo_advantages if objective.scale_rewards == "group" else group_advantages
    for side in sides:
        if objective.baseline == "per_reward":
            found = _scale_each(parts, side, objective)
        else:
            found = scaled([parts.rewards[at] for at in side])
        for at, advantage in zip(side, found, strict=True):
            advantages[at] = advantage
    return advantages


def _scale_each(parts: _Parts, side: Sequence[int], objective: Objective) -> list[float]:
    """Returns the weighted sum of the GRPO advantages of each reward (GDPO); a failed function adds 0."""
    by_style = grpo_advantages([parts.similarity[at] for at in side])
    by_answer = grpo_advantages([parts.answers[at] for at in side])
    pairs = zip(by_style, by_answer, strict=True)
    found = [objective.similarity_weight * one + objective.answer_weight * other for one, other in pairs]
    for number, own in enumerate(objective.functions):
        values = [parts.functions[at][number] for at in side]
        scaled = iter(grpo_advantages([value for value in values if value is not None]))
        found = [
            total if value is None else total + own.weight * next(scaled)
            for total, value in zip(found, values, strict=True)
        ]
    return found

"""Reward metrics of a step, by source.

`disc/<source>/...` is measured on the logits that produce the rewards; `disc/acc`, `disc/loss` etc. are measured before
the discriminator update, on unseen texts (stages/adversary/adversary.py).
"""

import math
from collections.abc import Sequence

from stages.config.objective import PAPER, Objective
from stages.groups.response import STUDENT, TEACHERS, Response
from stages.job import metric_names as names
from stages.policy.rewards import ScoredResponse


def reward_metrics(
    groups: Sequence[Sequence[Response]],
    scored: Sequence[Sequence[ScoredResponse]],
    functions: Sequence[str] = (),
    objective: Objective = PAPER,
) -> dict[str, float | None]:
    """Returns mean rewards and advantages for the student, each teacher and all teachers, and health indicators.

    `groups` are all 2G responses per question, `scored` those that remain in their group; `functions` are the names of
    the functions of `ril.rewards`. Groups of an objective without rewards are not compared, and without a judge no
    verdict of the student's has failed.
    """
    everything = [one for group in groups for one in group]
    kept = [one for group in scored for one in group]
    by_student = [one for one in kept if one.response.source == STUDENT]
    compared = [group for group in scored if group and objective.has_rewards]
    metrics: dict[str, float | None] = {
        names.STUDENT_SIMILARITY: _mean([one.similarity for one in by_student]),
        names.STUDENT_ANSWER: _mean([one.answer for one in by_student]),
        names.PASSED: _mean([one.logit < 0 for one in by_student if _is_scored(one)]),
    }
    for source in sorted({one.source for one in everything}):
        metrics |= _source_metrics(
            source,
            [one for one in everything if one.source == source],
            [one for one in kept if one.response.source == source],
        )
    teachers = [one for one in everything if one.source != STUDENT]
    if teachers:
        metrics |= _source_metrics(TEACHERS, teachers, [one for one in kept if one.response.source != STUDENT])
    for number, name in enumerate(functions):
        metrics |= _function_metrics(name, number, kept)
    if not objective.uses_judge:
        metrics.pop(names.FAILED.format(STUDENT), None)
    return metrics | {
        names.STUDENT_CUT: metrics.get(names.CUT.format(STUDENT)),
        names.EQUAL_REWARDS: _mean([len({one.reward for one in group}) <= 1 for group in compared]),
        names.CORRECT_NEGATIVE_ADVANTAGE: _mean([one.advantage < 0 for one in by_student if one.answer]),
        names.STUDENT_FAILED: metrics.get(names.FAILED.format(STUDENT)),
        **_distillation_metrics(by_student),
    }


def _source_metrics(
    source: str, responses: Sequence[Response], kept: Sequence[ScoredResponse]
) -> dict[str, float | None]:
    """Returns the metrics of one source: `responses` are all of its responses, `kept` those that remain in groups."""
    scored = [one for one in kept if _is_scored(one)]
    metrics = {
        names.SIMILARITY: _mean([one.similarity for one in kept]),
        names.ANSWER: _mean([one.answer for one in kept]),
        names.REWARD: _mean([one.reward for one in kept]),
        names.ADVANTAGE: _mean([one.advantage for one in kept]),
        names.REWARD_LOGIT: _mean([one.logit for one in scored]),
        names.REWARD_ACCURACY: _mean([_is_told(one) for one in scored]),
        names.LENGTH: _mean([len(one.token_ids) for one in responses]),
        names.CUT: _mean([one.finish_reason == "length" for one in responses]),
        names.FAILED: _mean([one.verdict is None for one in responses]),
    }
    return {name.format(source): value for name, value in metrics.items()}


def _distillation_metrics(by_student: Sequence[ScoredResponse]) -> dict[str, float | None]:
    """Returns the share of answers that no teacher could score, among those that teachers were asked for."""
    asked = [values for one in by_student if (values := one.response.teacher_log_probs) is not None]
    return {names.UNSCORED: _mean([not values for values in asked])} if asked else {}


def _function_metrics(name: str, number: int, kept: Sequence[ScoredResponse]) -> dict[str, float | None]:
    """Returns the mean values of one function where it has not failed, and the share of the student's that failed."""
    by_side = [
        [one.functions[number] for one in kept if (one.response.source == STUDENT) == student]
        for student in (True, False)
    ]
    student, teachers = ([value for value in values if value is not None] for values in by_side)
    found: dict[str, float | None] = {
        names.FUNCTION.format(name): _mean(student),
        names.FUNCTION_FAILED.format(name): _mean([value is None for value in by_side[0]]),
    }
    return {**found, names.FUNCTION_OF_TEACHERS.format(name): _mean(teachers)} if by_side[1] else found


def _is_told(one: ScoredResponse) -> bool:
    """Returns whether the discriminator classifies the source correctly."""
    return one.logit > 0 if one.response.source == STUDENT else one.logit < 0


def _is_scored(one: ScoredResponse) -> bool:
    return not math.isnan(one.logit)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

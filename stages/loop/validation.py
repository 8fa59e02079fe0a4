"""Validation in the loop: greedy answers to the validation split, and selection of the step to keep."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from stages.benchmarks.split_scores import (
    JUDGE,
    NO_VERDICT,
    AskVerdicts,
    count_deciders,
    describe_deciders,
    score_answers,
)
from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.engine import Request
from stages.job.job import Job
from stages.job.metric_names import STEP, VALIDATION, VALIDATION_FAILED, VALIDATION_JUDGED
from stages.judging.exam import judge_beside_training
from stages.loop.models import RilModels
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState

VALIDATION_SAMPLES = "validation_samples"  # the record of kept answers


class Validation:
    """Scores the student on the validation questions and copies its weights as `ril.keep` requires."""

    def __init__(self, job: Job, models: RilModels, state: TrainingState, questions: Sequence[Question]) -> None:
        self._job, self._models, self._state, self._questions = job, models, state, questions
        self._block = job.block(Ril)
        if self._block.validation_scoring != "rules" and models.judge is None and get_ranks().first:
            job.progress.say(f"{job.name}: this objective has no judge: validation scores answers by rules alone")

    def run(self, step: int) -> None:
        """Records the student's score after `step` steps. All ranks must call this.

        Raises RuntimeError if no answer has a score, because the judge gave no verdict.
        """
        with self._job.measure_time("validate"):
            found = get_ranks().broadcast(self._measure)
        numbers, kept = found
        scores = self._state.rows("validation")
        scores.append({STEP: step, **numbers})
        self._state.rows(VALIDATION_SAMPLES).extend({STEP: step, **row} for row in kept)
        if self._block.keep != "last" and select_step(scores, self._block) == step:
            self._state.copy = self._models.policy.trainer.copy_state()

    def is_due(self, step: int) -> bool:
        """Returns whether the student is scored after `step` steps."""
        return step % self._block.validation_every == 0 or step == self._block.steps

    def _measure(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Returns the mean score, with a judge also the shares that it decided and that have no verdict, and the
        answers to the first `ril.validation_samples` questions.

        A question that exceeds the student's context counts as wrong.
        """
        greedy = Sampling(temperature=0.0, max_tokens=self._block.sampling.max_tokens)
        asked = [one for one in self._questions if self._models.explain_refusal(one) is None]
        requests = [Request(question.id, question.messages, question.images, greedy) for question in asked]
        answers = dict(self._models.engine.generate(requests))
        said = {question.id: answers[index][0].text for index, question in enumerate(asked)}
        judge = self._find_judge()
        scores = score_answers([(one, said.get(one.id)) for one in self._questions], judge)
        known = [one.score for one in scores if one.score is not None]
        if not known:
            raise RuntimeError(
                f"{self._job.name}: the judge gave no verdict on any validation answer; the last training checkpoint "
                "stays. Correct the judge, or set ril.validation_scoring: rules"
            )
        found = {VALIDATION: sum(known) / len(known)}
        if judge is not None:
            shares = count_deciders([one.decided_by for one in scores])
            self._job.progress.say(f"validation: decided by {describe_deciders(shares)}")
            found |= {VALIDATION_JUDGED: shares.get(JUDGE, 0.0), VALIDATION_FAILED: shares.get(NO_VERDICT, 0.0)}
        kept = zip(self._questions[: self._block.validation_samples], scores, strict=False)
        return found, [
            {"question_id": one.id, "kind": one.kind, "response": said.get(one.id, ""), "score": score.score}
            for one, score in kept
        ]

    def _find_judge(self) -> AskVerdicts | None:
        """Returns the judge of the loop if `ril.validation_scoring` wants it."""
        if self._block.validation_scoring == "rules" or (judge := self._models.judge) is None:
            return None
        return partial(judge_beside_training, judge=judge, block=self._job.block(Verdict))


def select_step(scores: Sequence[Mapping[str, Any]], block: Ril) -> int:
    """Returns the step whose weights become the stage's model: the last, or the first with the best score."""
    if block.keep == "last":
        return int(scores[-1][STEP])
    return int(max(scores, key=lambda row: (row[VALIDATION], -row[STEP]))[STEP])

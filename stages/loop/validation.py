"""Validation in the loop: greedy answers to the validation split, and selection of the step to keep."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.corpora.rows import Question
from stages.corpora.scoring import is_correct
from stages.engines.engine import Request
from stages.job.job import Job
from stages.job.metric_names import STEP, VALIDATION
from stages.loop.models import RilModels
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState


class Validation:
    """Scores the student on the validation questions and copies its weights as `ril.keep` requires."""

    def __init__(self, job: Job, models: RilModels, state: TrainingState, questions: Sequence[Question]) -> None:
        self._job, self._models, self._state, self._questions = job, models, state, questions
        self._block = job.block(Ril)

    def run(self, step: int) -> None:
        """Records the student's score after `step` steps. All ranks must call this."""
        with self._job.measure_time("validate"):
            share = get_ranks().broadcast(self._measure_accuracy)
        scores = self._state.rows("validation")
        scores.append({STEP: step, VALIDATION: share})
        if self._block.keep != "last" and select_step(scores, self._block) == step:
            self._state.copy = self._models.policy.trainer.copy_state()

    def is_due(self, step: int) -> bool:
        """Returns whether the student is scored after `step` steps."""
        return step % self._block.validation_every == 0 or step == self._block.steps

    def _measure_accuracy(self) -> float:
        """Returns the share of correct answers; a question that exceeds the student's context counts as wrong."""
        greedy = Sampling(temperature=0.0, max_tokens=self._block.sampling.max_tokens)
        asked = [one for one in self._questions if self._models.explain_refusal(one) is None]
        requests = [Request(question.id, question.messages, question.images, greedy) for question in asked]
        answers = dict(self._models.engine.generate(requests))
        right = [is_correct(answers[index][0].text, question.answer) for index, question in enumerate(asked)]
        return sum(right) / len(self._questions)


def select_step(scores: Sequence[Mapping[str, Any]], block: Ril) -> int:
    """Returns the step whose weights become the stage's model: the last, or the first with the best score."""
    if block.keep == "last":
        return int(scores[-1][STEP])
    return int(max(scores, key=lambda row: (row[VALIDATION], -row[STEP]))[STEP])

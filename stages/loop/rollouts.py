"""Rollouts: the 2G responses of a step to each question (Algorithm 2, lines 3 and 4) and the verdicts on the student's.

A step's responses are recorded before anything learns from them, and again with their verdicts: a resumed step uses
them and pays for nothing twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from stages.config.ril import Ril
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.engine import Answer, EngineError, Request
from stages.groups.response import STUDENT, Response
from stages.job.job import Job
from stages.judging.queue import JudgeQueue
from stages.loop.models import RilModels
from stages.responses.draws import TeacherAnswer, draw_balanced
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState
from stages.vlm.reader import Reader

Groups = list[list[Response]]  # the responses to each question of a step, the student's first


class Rollouts:
    """Collects the responses of each step. The first rank works; all ranks get the same."""

    def __init__(
        self, job: Job, models: RilModels, state: TrainingState, pool: Mapping[str, Sequence[TeacherAnswer]]
    ) -> None:
        """`pool` holds the teachers' answers by question id."""
        self._job, self._models, self._state, self._pool = job, models, state, pool
        self._block, self._objective = job.block(Ril), models.policy.objective
        self._queue: JudgeQueue | None = None  # of the present step

    def collect(self, step: int, questions: Sequence[Question]) -> Groups:
        """G responses of the student, which go to the judge as they are finished, and G of the teachers."""
        return get_ranks().broadcast(lambda: self._collect(step, questions))

    def judge(self, step: int, groups: Groups) -> Groups:
        """The same responses with the verdicts on the student's; waits for the judge.

        Raises RuntimeError when more verdicts fail than verdict.max_failed_share allows.
        """
        return get_ranks().broadcast(lambda: self._judge(step, groups))

    def _collect(self, step: int, questions: Sequence[Question]) -> Groups:
        if (judge := self._models.judge) is not None:
            self._queue = JudgeQueue(judge, self._job.block(Verdict), f"{self._job.name}, step {step + 1}")
        if (recorded := self._state.read_record(step)) is not None:
            return self._reuse(questions, recorded)
        with self._job.measure_time("sample"):
            groups = self._sample(step, questions)
        for question, group in zip(questions, groups, strict=True):
            seed = self._job.seed("draw", step, question.id)
            answers = draw_balanced(self._pool[question.id], self._block.group, seed)
            group += [tokenize_teacher_answer(self._models.reader, answer) for answer in answers]
        self._record(step, groups, judged=self._queue is None)
        return groups

    def _reuse(self, questions: Sequence[Question], recorded: Mapping[str, Any]) -> Groups:
        """What an earlier run of this step recorded; the judge is asked where its verdicts were not there yet."""
        groups = [[load_response(values) for values in group] for group in recorded["groups"]]
        if self._queue is not None and not recorded["judged"]:
            for number, (question, group) in enumerate(zip(questions, groups, strict=True)):
                self._queue.put(number, question, [one for one in group if one.source == STUDENT])
        return groups

    def _sample(self, step: int, questions: Sequence[Question]) -> Groups:
        """G responses of the student to each question; the judge is asked about a question's as they are finished."""
        if self._objective.references:
            return [[] for _ in questions]
        groups: dict[int, list[Response]] = {}
        for number, answers in self._models.engine.generate(
            [self._make_request(step, question) for question in questions]
        ):
            if failed := [answer for answer in answers if answer.failed]:
                raise EngineError(
                    f"{len(failed)} answers of the student failed in step {step}; the first: {failed[0].finish_reason}"
                )
            groups[number] = [make_student_response(answer) for answer in answers]
            if self._queue is not None:
                self._queue.put(number, questions[number], groups[number])
        return [groups[number] for number in range(len(questions))]

    def _make_request(self, step: int, question: Question) -> Request:
        """The question to the student's engine; its G answers are one request and are finished together."""
        compared = self._objective.rollout_correction != "none"
        seed = self._job.seed("sample", step, question.id) % 2**62
        sampling, count = self._block.sampling, self._block.group
        return Request(question.id, question.messages, question.images, sampling, count, seed, compared)

    def _judge(self, step: int, groups: Groups) -> Groups:
        if self._queue is None or not self._queue.used:
            return groups
        verdicts = self._queue.collect_verdicts()
        groups = [
            [
                replace(one, verdict=verdicts[number, place]) if one.source == STUDENT else one
                for place, one in enumerate(group)
            ]
            for number, group in enumerate(groups)
        ]
        self._record(step, groups, judged=True)
        return groups

    def _record(self, step: int, groups: Groups, judged: bool) -> None:
        self._state.record(step, {"judged": judged, "groups": [[asdict(one) for one in group] for group in groups]})


def make_student_response(answer: Answer) -> Response:
    """An answer of the student; its token ids are the engine's own, never re-tokenised (trap T6)."""
    return Response(STUDENT, answer.text, answer.token_ids, answer.finish_reason, None, answer.log_probs)


def tokenize_teacher_answer(reader: Reader, answer: TeacherAnswer) -> Response:
    """A stored answer of a teacher in the student's tokens, with the verdict that it got once for all experiments."""
    ids = tuple(reader.chat.encode_response(answer.text))
    return Response(answer.teacher, answer.text, ids, answer.finish_reason, answer.verdict)


def make_reference_answer(question: Question) -> TeacherAnswer:
    """The written-out reference of a question as an answer: its target, where it has one as in the warm start."""
    return TeacherAnswer("reference", 0, question.target or question.answer, 1, "stop")


def load_response(values: Mapping[str, Any]) -> Response:
    """The response that `asdict` and JSON made `values` of."""
    sampled = values["sampled_log_probs"]
    lists = {"token_ids": tuple(values["token_ids"]), "sampled_log_probs": None if sampled is None else tuple(sampled)}
    return Response(**{**values, **lists})

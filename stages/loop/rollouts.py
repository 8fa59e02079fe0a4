"""Rollouts: the 2G responses to each question of a step (Algorithm 2, lines 3 and 4) and their verdicts.

The responses of a step are recorded before any update, and again with their verdicts: a resumed step reuses both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from stages.config.ril import Ril
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.corpora.scoring import is_correct
from stages.engines.engine import Answer, EngineError, Request
from stages.groups.response import STUDENT, Response
from stages.job.job import Job
from stages.judging.exam import check_exam, examine
from stages.judging.queue import JudgeQueue
from stages.loop.models import RilModels
from stages.loop.teachers import add_log_probs
from stages.responses.draws import TeacherAnswer, draw_balanced
from stages.responses.variety import UselessAnswers
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState
from stages.vlm.reader import Reader

CONSTANT_STEPS = 10  # steps with one and the same verdict, after which the judge is examined
OF_SAMPLING = "of sampling"  # in a record: its log-probs are those of the distribution that was sampled from
Groups = list[list[Response]]  # responses to each question of a step, student responses first


class Rollouts:
    """Collects the responses of each step on the first rank and broadcasts them to all ranks."""

    def __init__(
        self, job: Job, models: RilModels, state: TrainingState, pool: Mapping[str, Sequence[TeacherAnswer]]
    ) -> None:
        """`pool` maps question ids to teacher answers; an objective that imitates references does not read it."""
        self._job, self._models, self._state, self._pool = job, models, state, pool
        self._block, self._objective = job.block(Ril), models.policy.objective
        self._queue: JudgeQueue | None = None  # of the current step
        self._constant = 0  # steps in a row in which all verdicts were the same

    @property
    def _compares(self) -> bool:
        """Whether the engine's log-probabilities are compared with the trainer's."""
        return self._objective.rollout_correction != "none"

    def collect(self, step: int, questions: Sequence[Question]) -> Groups:
        """Returns G student and G teacher responses per question; student responses go to the judge as they finish.

        Engines that share GPUs with the ranks sleep from then on; such a judge has finished its verdicts before.
        """
        return get_ranks().broadcast(lambda: self._collect_and_sleep(step, questions))

    def judge(self, step: int, groups: Groups) -> Groups:
        """Waits for the judge and returns the responses with verdicts on those of the student.

        After CONSTANT_STEPS steps with one and the same verdict, the judge sits the exam. Raises UselessJudge if it
        fails it, RuntimeError when the share of failed verdicts exceeds verdict.max_failed_share.
        """
        return get_ranks().broadcast(lambda: self._judge(step, groups))

    def _collect_and_sleep(self, step: int, questions: Sequence[Question]) -> Groups:
        groups = self._collect(step, questions)
        if self._models.judge_sleeps:
            groups = self._judge(step, groups)
        self._models.sleep_engines()
        return groups

    def _collect(self, step: int, questions: Sequence[Question]) -> Groups:
        if (judge := self._models.judge) is not None and self._objective.uses_judge:
            self._queue = JudgeQueue(judge, self._job.block(Verdict), f"{self._job.name}, step {step + 1}")
        if (recorded := self._read_record(step)) is not None:
            groups = self._reuse(questions, recorded)
            return self._score(step, questions, groups, recorded["judged"])
        with self._job.measure_time("sample"):
            groups = self._sample(step, questions)
        for question, group in zip(questions, groups, strict=True):
            seed = self._job.seed("draw", step, question.id)
            answers = draw_balanced(self._list_known(question), self._block.group, seed)
            group += [tokenize_teacher_answer(self._models.reader, answer) for answer in answers]
            if self._objective.answer_by == "parsing":
                group[:] = [replace(one, verdict=int(is_correct(one.text, question.answer))) for one in group]
        self._compute_functions(questions, groups)
        judged = self._queue is None and self._models.functions is None
        self._record(step, groups, judged)
        return self._score(step, questions, groups, judged)

    def _list_known(self, question: Question) -> Sequence[TeacherAnswer]:
        """Returns the answers that a step may draw from; those that are only imitated all count as correct."""
        if self._objective.references:
            return [make_reference_answer(question)]
        known = self._pool[question.id]
        return [replace(one, verdict=1) for one in known] if self._objective.imitates else known

    def _score(self, step: int, questions: Sequence[Question], groups: Groups, judged: bool) -> Groups:
        """Returns the responses with log p under the teachers that the student is distilled from; records them.

        Those of an earlier run of this step are kept; without such teachers nothing changes.
        """
        known = all(one.teacher_log_probs is not None for group in groups for one in group if one.source == STUDENT)
        if not self._objective.distils or known:
            return groups
        with self._job.measure_time("teachers"):
            groups = add_log_probs(self._models.teachers, questions, groups)
        for question, group in zip(questions, groups, strict=True):
            values = [value for one in group for scores in one.teacher_log_probs or () for value in scores]
            self._state.guard.check("log-probability of a teacher", values, [question.id])
        self._record(step, groups, judged)
        return groups

    def _compute_functions(self, questions: Sequence[Question], groups: Groups) -> None:
        """Gives all answers to `ril.rewards`: functions compute beside the loop, the judge is asked later."""
        if self._models.functions is not None:
            for number, (question, group) in enumerate(zip(questions, groups, strict=True)):
                self._models.functions.put(number, question, group)

    def _read_record(self, step: int) -> dict[str, Any] | None:
        """Returns the recorded responses of this step; None if there are none, or without log-probs of sampling.

        Records without this mark have log-probs before penalty, temperature, top-k and top-p.
        """
        recorded: dict[str, Any] | None = self._state.read_record(step)
        if recorded is None or not self._compares or recorded.get("log_probs") == OF_SAMPLING:
            return recorded
        self._job.progress.say(
            f"{self._job.name}: step {step + 1}: recorded answers have no log-probs of sampling, which "
            "ril.rollout_correction needs; the student answers again"
        )
        return None

    def _reuse(self, questions: Sequence[Question], recorded: Mapping[str, Any]) -> Groups:
        """Returns the responses recorded by an earlier run of this step; requests verdicts and values if they are
        missing.
        """
        groups = [[load_response(values) for values in group] for group in recorded["groups"]]
        if not recorded["judged"]:
            self._compute_functions(questions, groups)
        if self._queue is not None and not recorded["judged"]:
            for number, (question, group) in enumerate(zip(questions, groups, strict=True)):
                self._queue.put(number, question, [one for one in group if one.source == STUDENT])
        return groups

    def _sample(self, step: int, questions: Sequence[Question]) -> Groups:
        """Samples G student responses per question; each question's responses go to the judge as they finish.

        Raises UselessAnswers when the share of empty responses exceeds ril.max_empty_share.
        """
        if not self._objective.samples:
            return [[] for _ in questions]
        groups: dict[int, list[Response]] = {}
        for number, answers in self._models.engine.generate(
            [self._make_request(step, question) for question in questions]
        ):
            if failed := [answer for answer in answers if answer.failed]:
                raise EngineError(
                    f"{len(failed)} student answers failed in step {step}; first failure: {failed[0].finish_reason}"
                )
            for answer in answers:
                self._state.guard.check("log-probability of the engine", answer.log_probs or (), [questions[number].id])
            groups[number] = [make_student_response(answer) for answer in answers]
            if self._queue is not None:
                self._queue.put(number, questions[number], groups[number])
        ordered = [groups[number] for number in range(len(questions))]
        self._check_texts(step, questions, ordered)
        return ordered

    def _check_texts(self, step: int, questions: Sequence[Question], groups: Groups) -> None:
        empty = [sum(not one.text.strip() for one in group) for group in groups]
        silent = [one.id for one, count, group in zip(questions, empty, groups, strict=True) if count == len(group)]
        share, bound = sum(empty) / sum(map(len, groups)), self._block.max_empty_share
        place = f"{self._job.name}: step {step + 1}: {sum(empty)} of {sum(map(len, groups))} student answers are empty"
        if share > bound:
            raise UselessAnswers(
                f"{place}: {share:.0%}, above ril.max_empty_share = {bound:g}; the last training checkpoint stays. "
                "Lower ril.learning_rate or raise ril.kl_weight"
            )
        if silent:
            self._job.progress.say(
                f"warning: {place}, all of {len(silent)} questions, such as {silent[0]}; the stage fails above "
                f"{bound:.0%}"
            )

    def _make_request(self, step: int, question: Question) -> Request:
        """Returns one request for all G answers to the question; they finish together."""
        seed = self._job.seed("sample", step, question.id) % 2**62
        sampling, count = self._block.sampling, self._block.group
        return Request(question.id, question.messages, question.images, sampling, count, seed, self._compares)

    def _judge(self, step: int, groups: Groups) -> Groups:
        functions = self._models.functions
        judges = self._queue is not None and self._queue.used
        computes = functions is not None and functions.used
        verdicts: Mapping[tuple[int, int], int | None] = {}
        if self._queue is not None and judges:
            verdicts = self._queue.collect_verdicts()
            self._queue = None
            groups = [
                [
                    replace(one, verdict=verdicts[number, place]) if one.source == STUDENT else one
                    for place, one in enumerate(group)
                ]
                for number, group in enumerate(groups)
            ]
        if functions is not None and computes:
            values = functions.collect(f"{self._job.name}, step {step + 1}", self._job.progress.say)
            groups = [
                [replace(one, rewards=values[number, place]) for place, one in enumerate(group)]
                for number, group in enumerate(groups)
            ]
        if judges or computes:
            self._record(step, groups, judged=True)
        if judges:
            self._check_judge(step, set(verdicts.values()))
        return groups

    def _check_judge(self, step: int, said: set[int | None]) -> None:
        """Counts steps without a difference between verdicts; all answers may be right, so the exam decides."""
        self._constant = self._constant + 1 if len(said) == 1 else 0
        block = self._job.block(Verdict)
        if self._constant != CONSTANT_STEPS or self._models.judge is None:
            return
        place = f"{self._job.name}: step {step + 1}"
        self._job.progress.say(
            f"warning: {place}: all verdicts of the last {CONSTANT_STEPS} steps are {next(iter(said))}: the answer "
            "reward carries no signal"
        )
        if block.exam:
            scores = examine(self._models.judge, block)
            check_exam(scores, block.min_exam_accuracy, place)
            self._job.progress.say(f"{place}: the judge has {scores['balanced_accuracy']:.2f} in the exam; it goes on")

    def _record(self, step: int, groups: Groups, judged: bool) -> None:
        rows = [[asdict(one) for one in group] for group in groups]
        self._state.record(
            step, {"judged": judged, "log_probs": OF_SAMPLING if self._compares else None, "groups": rows}
        )


def make_student_response(answer: Answer) -> Response:
    """Converts a student answer; its token ids are those of the engine, never re-tokenised (trap T6)."""
    return Response(STUDENT, answer.text, answer.token_ids, answer.finish_reason, None, answer.log_probs)


def tokenize_teacher_answer(reader: Reader, answer: TeacherAnswer) -> Response:
    """Tokenizes a stored teacher answer with the student's tokenizer and keeps its stored verdict.

    A truncated answer has no end token: nothing shall learn to end there.
    """
    encode = reader.chat.encode_response if answer.finish_reason == "stop" else reader.chat.encode_text
    return Response(answer.teacher, answer.text, tuple(encode(answer.text)), answer.finish_reason, answer.verdict)


def make_reference_answer(question: Question) -> TeacherAnswer:
    """Returns the reference of a question as an answer: its target if it has one, else its short answer."""
    return TeacherAnswer("reference", 0, question.target or question.answer, 1, "stop")


def load_response(values: Mapping[str, Any]) -> Response:
    """Restores a response from the JSON form of its `asdict`."""
    sampled, scored = values["sampled_log_probs"], values.get("teacher_log_probs")
    lists: dict[str, Any] = {
        "token_ids": tuple(values["token_ids"]),
        "sampled_log_probs": None if sampled is None else tuple(sampled),
        "teacher_log_probs": None if scored is None else tuple(map(tuple, scored)),
        "rewards": tuple(values.get("rewards", ())),
    }
    return Response(**{**values, **lists})

"""Verdicts on the answers of one step of the loop, requested as the answers arrive.

A judge on a server (`vllm_server`, or an endpoint) processes each answer as soon as it is finished, concurrently with
this process. A judge in this process gets all answers at once when the verdicts are collected, in the order of their
places. In both cases the verdicts depend only on the answers.
"""

from collections.abc import Sequence

from stages.config.verdict import Verdict as Block
from stages.config.verdict import VerdictForm
from stages.corpora.rows import Question
from stages.engines.engine import ConcurrentEngine, Engine, Outcome, Request
from stages.groups.response import Response
from stages.judging.faults import turn_verdict
from stages.judging.judge import (
    JudgeItem,
    JudgeVerdict,
    count_verdicts,
    make_fit_check,
    make_judge_sampling,
    prepare_question,
    read_verdict,
)

ResponsePlace = tuple[int, int]  # number of the question in its step, number of the answer


class JudgeQueue:
    """Queues the responses of one step for the judge and collects their verdicts."""

    def __init__(self, judge: Engine, block: Block, name: str) -> None:
        """`name` is used in messages."""
        self._judge, self._block, self._name = judge, block, name
        self._fits = make_fit_check(judge.chat, judge.checkpoint.context_tokens, block.max_tokens)
        self._stream = judge.open_stream() if isinstance(judge, ConcurrentEngine) else None
        self._verdicts: dict[ResponsePlace, JudgeVerdict] = {}
        self._asked: list[tuple[ResponsePlace, Request]] = []
        self._candidates: dict[ResponsePlace, str] = {}

    @property
    def used(self) -> bool:
        """Whether any response was added."""
        return bool(self._asked or self._verdicts)

    def put(self, number: int, question: Question, rows: Sequence[Response]) -> None:
        """Adds the responses to question `number` of the step."""
        for place, row in enumerate(rows):
            item = JudgeItem(question.id, question.text, question.answer, row.text, self._block.rule_first)
            opened = prepare_question(item, self._fits, self._block.form)
            if isinstance(opened, JudgeVerdict):
                self._verdicts[number, place] = opened
                continue
            request = Request(opened.id, opened.messages, opened.images, make_judge_sampling(self._block))
            self._asked.append(((number, place), request))
            self._candidates[number, place] = row.text
            if self._stream is not None:
                self._stream.put(request)

    def collect_verdicts(self) -> dict[ResponsePlace, int | None]:
        """Waits for the judge and returns the verdict on each response, None if it failed.

        Raises RuntimeError when the share of failed verdicts exceeds verdict.max_failed_share.
        """
        if self._stream is None:
            self._asked.sort(key=lambda one: one[0])  # by place, not by arrival
            found = self._judge.iter_outcomes([request for _, request in self._asked])
        else:
            found = self._stream.iter_outcomes()
        for index, outcome in found:
            place, request = self._asked[index]
            said = _read_outcome(outcome, self._block.form)
            self._verdicts[place] = turn_verdict(said, request.name, self._candidates[place], self._block.turned)
        counts = count_verdicts(self._verdicts[place] for place in sorted(self._verdicts))
        counts.check_failures(self._block.max_failed_share, self._name)
        return {place: verdict.verdict for place, verdict in self._verdicts.items()}


def _read_outcome(outcome: Outcome, form: VerdictForm) -> JudgeVerdict:
    if isinstance(outcome, str):
        return JudgeVerdict(None, outcome, None)
    (answer,) = outcome
    return JudgeVerdict(None, answer.finish_reason, None) if answer.failed else read_verdict(answer, form)

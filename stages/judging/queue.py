"""Verdicts on the answers of one step of the loop, asked for as the answers come.

A judge on a server (`vllm_server`, or an endpoint) starts on each answer as it is finished, beside whatever this
process does; one in this process is asked about all of them when the verdicts are wanted, in the order of the answers'
places. Either way the verdicts depend on the answers alone.
"""

from collections.abc import Sequence

from stages.config.verdict import Verdict as Block
from stages.corpora.rows import Question
from stages.engines.engine import Answer, ConcurrentEngine, Engine, Request
from stages.groups.response import Response
from stages.judging.judge import (
    JudgeItem,
    JudgeVerdict,
    check_failures,
    make_fit_check,
    make_judge_sampling,
    prepare_question,
    read_verdict,
)
from stages.responses.waves import generate_outcomes

ResponsePlace = tuple[int, int]  # number of the question in its step, number of the answer


class JudgeQueue:
    """The responses of one step that wait for a verdict."""

    def __init__(self, judge: Engine, block: Block, name: str) -> None:
        """`name` is for messages."""
        self._judge, self._block, self._name = judge, block, name
        self._fits = make_fit_check(judge.chat, judge.checkpoint.context_tokens, block.max_tokens)
        self._stream = judge.open_stream() if isinstance(judge, ConcurrentEngine) else None
        self._verdicts: dict[ResponsePlace, JudgeVerdict] = {}
        self._asked: list[tuple[ResponsePlace, Request]] = []

    @property
    def used(self) -> bool:
        """Whether anything was put in."""
        return bool(self._asked or self._verdicts)

    def put(self, number: int, question: Question, rows: Sequence[Response]) -> None:
        """Wants a verdict on each of the rows, which answer question number `number` of the step."""
        for place, row in enumerate(rows):
            item = JudgeItem(question.id, question.text, question.answer, row.text, self._block.rule_first)
            opened = prepare_question(item, self._fits)
            if isinstance(opened, JudgeVerdict):
                self._verdicts[number, place] = opened
                continue
            request = Request(opened.id, opened.messages, opened.images, make_judge_sampling(self._block))
            self._asked.append(((number, place), request))
            if self._stream is not None:
                self._stream.put(request)

    def collect_verdicts(self) -> dict[ResponsePlace, int | None]:
        """The verdict on every row, None where it failed; waits for the judge.

        Raises RuntimeError when too many failed: a judge that comes to no verdict must not train the student.
        """
        if self._stream is None:
            self._asked.sort(
                key=lambda one: one[0]
            )  # by place, not by when the answer came: equal answers, equal batches
            found = generate_outcomes(
                self._judge, [request for _, request in self._asked], list(range(len(self._asked)))
            )
        else:
            found = self._stream.iter_outcomes()
        for index, outcome in found:
            self._verdicts[self._asked[index][0]] = _read_outcome(outcome)
        ordered = [self._verdicts[place] for place in sorted(self._verdicts)]
        check_failures(ordered, self._block.max_failed_share, self._name)
        return {place: verdict.verdict for place, verdict in self._verdicts.items()}


def _read_outcome(outcome: list[Answer] | str) -> JudgeVerdict:
    if isinstance(outcome, str):
        return JudgeVerdict(None, outcome, None)
    (answer,) = outcome
    return JudgeVerdict(None, answer.finish_reason, None) if answer.failed else read_verdict(answer)

"""The rows of a step and their verdicts, and which records it uses; a judge that says the same to everything, a student
that says nothing.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from stages.config.objective import PAPER, Objective
from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.engine import Answer, Request
from stages.groups.response import STUDENT, Response
from stages.job.seeds import derive_seed
from stages.judging.exam import UselessJudge
from stages.loop.rollouts import CONSTANT_STEPS, Rollouts, tokenize_teacher_answer
from stages.responses.draws import TeacherAnswer
from stages.responses.variety import UselessAnswers
from stages.training.guard import StepGuard
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader
from tests.stages.judging.test_exam import ConstantEngine


def make(judge: Any = None, objective: Objective = PAPER, **verdict: Any) -> tuple[Any, list[str]]:
    """The rollouts of a loop with that judge and objective, and what they say."""
    said: list[str] = []
    blocks = {
        Ril: Ril(steps=9, learning_rate=1e-3, sampling=Sampling(max_tokens=8)),
        Verdict: Verdict(model="judge", **verdict),
    }
    job: Any = SimpleNamespace(name="ril", block=blocks.__getitem__, progress=SimpleNamespace(say=said.append))
    models: Any = SimpleNamespace(policy=SimpleNamespace(objective=objective), judge=judge)
    state: Any = None
    return Rollouts(job, models, state, {}), said


def group(*texts: str) -> list[Response]:
    return [Response(STUDENT, text, (1,), "stop", None) for text in texts]


@pytest.mark.parametrize(("reason", "ends"), [("stop", True), ("length", False)])
def test_a_cut_teacher_answer_has_no_end_token(tiny: Callable[[str], Checkpoint], reason: str, ends: bool) -> None:
    reader = load_reader(tiny("qwen2_5_vl"))
    row = tokenize_teacher_answer(reader, TeacherAnswer("internvl3", 3, "so 5", 1, reason))
    assert row.token_ids == (*reader.chat.encode_text("so 5"), *(reader.chat.stop_token_ids if ends else ()))
    assert (row.source, row.text, row.finish_reason, row.verdict) == ("internvl3", "so 5", reason, 1)


QUESTIONS: Any = [SimpleNamespace(id="q0"), SimpleNamespace(id="q1")]


def test_a_group_of_empty_answers_is_said_and_a_step_of_them_ends_the_loop() -> None:
    rollouts, said = make()
    rollouts._check_texts(4, QUESTIONS, [group("28", "27"), group("5", "")])
    assert said == []
    rollouts._check_texts(4, QUESTIONS, [group("28", "27"), group(" ", "")])
    assert said == [
        "warning: ril: step 5: 2 of 4 student answers are empty, all of 1 questions, such as q1; the stage fails "
        "above 50%"
    ]
    with pytest.raises(
        UselessAnswers, match=r"ril: step 5: 3 of 4 student answers are empty: 75%, above ril.max_empty"
    ):
        rollouts._check_texts(4, QUESTIONS, [group("", "27"), group("", "\n")])


@pytest.mark.parametrize("verdict", [0, 1])
def test_a_judge_that_says_the_same_for_steps_is_examined(verdict: int) -> None:
    rollouts, said = make(ConstantEngine(f"<answer>{verdict}</answer>"))
    for step in range(CONSTANT_STEPS - 1):
        rollouts._check_judge(step, {verdict})
    assert said == []
    with pytest.raises(
        UselessJudge, match=r"ril: step 10: the judge's balanced accuracy .* is 0\.50.*the same to every"
    ):
        rollouts._check_judge(CONSTANT_STEPS - 1, {verdict})
    assert said == [
        f"warning: ril: step 10: all verdicts of the last 10 steps are {verdict}: the answer reward carries no signal"
    ]


def test_a_difference_starts_the_count_anew_and_without_an_exam_it_is_only_said() -> None:
    rollouts, said = make(ConstantEngine("<answer>1</answer>"), exam=False)
    for step in range(3 * CONSTANT_STEPS):
        rollouts._check_judge(step, {0, 1} if step % CONSTANT_STEPS == 5 else {1})
    assert said == []
    for step in range(CONSTANT_STEPS):
        rollouts._check_judge(step, {1})
    assert len(said) == 1


def test_a_judge_that_passes_the_bound_goes_on() -> None:
    rollouts, said = make(ConstantEngine("<answer>1</answer>"), min_exam_accuracy=0.4)
    for step in range(2 * CONSTANT_STEPS):
        rollouts._check_judge(step, {1})
    assert len(said) == 2, "examined once"
    assert "the judge has 0.50 in the exam; it goes on" in said[1]


class Student:
    """An engine that answers the last request first, and is asked with seeds."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        self.asked += requests
        for number in reversed(range(len(requests))):
            name, reasons = requests[number].name, ("stop", "length", "stop")
            yield (
                number,
                [Answer(n, f"{name} {n}", (7, n), reason, 3, 2) for n, reason in zip(range(3), reasons, strict=True)],
            )


def open_rollouts(
    reply: Callable[[str], str] = lambda asked: "<answer>1</answer>", recorded: dict[int, Any] | None = None
) -> tuple[Rollouts, Student]:
    """Rollouts of G = 3 with six answers of each of two teachers to two questions, and a judge that says `reply`.

    `recorded` holds what was recorded of each step.
    """
    records = {} if recorded is None else recorded
    student, said = Student(), ConstantEngine("")

    def judge(requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for number, request in enumerate(requests):
            text = reply(request.messages[-1]["content"])
            yield number, [Answer(0, text, (), "stop" if text else "no reply", 9, 3)]

    said.iter_outcomes = judge  # type: ignore[method-assign]
    blocks = {
        Ril: Ril(steps=9, learning_rate=1e-3, group=3, sampling=Sampling(max_tokens=8)),
        Verdict: Verdict(model="judge", rule_first=False, max_failed_share=0.5),
    }
    job: Any = SimpleNamespace(
        name="ril",
        block=blocks.__getitem__,
        seed=lambda *parts: derive_seed(0, "ril", *parts),
        measure_time=lambda _: contextlib.nullcontext(),
        progress=SimpleNamespace(say=print),
    )
    state: Any = SimpleNamespace(
        record=lambda step, value: records.update({step: json.loads(json.dumps(value))}),
        read_record=records.get,
        guard=StepGuard(),
    )
    chat = SimpleNamespace(
        encode_text=lambda text: [*map(ord, text)], encode_response=lambda text: [*map(ord, text), 0]
    )
    policy = SimpleNamespace(objective=PAPER)
    awake = {"judge_sleeps": False, "sleep_engines": lambda: None, "functions": None}
    reader = SimpleNamespace(chat=chat)
    models: Any = SimpleNamespace(engine=student, judge=said, reader=reader, policy=policy, **awake)
    pool = {
        question.id: [
            TeacherAnswer(teacher, n, f"{question.id} {teacher}{n}", n % 2, "length" if n == 5 else "stop")
            for teacher in "ab"
            for n in range(6)
        ]
        for question in ASKED
    }
    return Rollouts(job, models, state, pool), student


ASKED = [
    Question(f"q{n}", (), (), ({"role": "user", "content": f"{n}?"},), None, f"truth {n}", "", "") for n in range(2)
]


def test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers() -> None:
    rollouts, _ = open_rollouts()
    groups = rollouts.collect(0, ASKED)
    for question, group in zip(ASKED, groups, strict=True):
        assert [(one.source, one.text, one.token_ids, one.finish_reason) for one in group[:3]] == [
            (STUDENT, f"{question.id} {n}", (7, n), "length" if n == 1 else "stop") for n in range(3)
        ]
        known = {f"{question.id} {teacher}{n}": (teacher, n) for teacher in "ab" for n in range(6)}
        drawn = [known[one.text] for one in group[3:]]
        assert len(set(drawn)) == 3
        assert [(one.source, one.verdict, one.finish_reason) for one in group[3:]] == [
            (teacher, n % 2, "length" if n == 5 else "stop") for teacher, n in drawn
        ]
        assert [one.token_ids for one in group[3:]] == [
            (*map(ord, one.text), *([0] if one.finish_reason == "stop" else [])) for one in group[3:]
        ]


def test_every_step_and_every_question_is_sampled_and_drawn_anew() -> None:
    rollouts, student = open_rollouts()
    drawn = [[one.text[3:] for one in group[3:]] for step in range(8) for group in rollouts.collect(step, ASKED)]
    assert all(request.n == 3 for request in student.asked)
    assert len({request.seed for request in student.asked}) == 16
    for number in (0, 1):
        assert len({tuple(sorted(one)) for one in drawn[number::2]}) > 6, "of each question"
    assert sum(drawn[2 * step] == drawn[2 * step + 1] for step in range(8)) < 2, "no draw is for the whole step"
    again, _ = open_rollouts()
    assert [[one.text[3:] for one in group[3:]] for group in again.collect(5, ASKED)] == drawn[10:12]


def test_an_answer_has_the_judges_verdict_on_it_and_none_where_the_judge_failed() -> None:
    """The judge reads question, candidate and the question's reference; it finds sample 2 right and fails at q1 0."""
    seen: list[str] = []

    def reply(asked: str) -> str:
        seen.append(asked)
        return "" if " q1 0 " in asked else f"<answer>{int(' 2 </candidate' in asked)}</answer>"

    rollouts, _ = open_rollouts(reply)
    groups = rollouts.judge(0, rollouts.collect(0, ASKED))
    assert [[one.verdict for one in group[:3]] for group in groups] == [[0, 0, 1], [None, 0, 1]]
    assert len(seen) == 6
    for asked, (question, n) in zip(seen, ((question, n) for question in ASKED for n in range(3)), strict=True):
        assert f"<question> {question.text} </question>" in asked
        assert f"> {question.id} {n} </candidate" in asked
        assert f"<reference> {question.answer} </reference>" in asked


def test_a_step_that_was_recorded_is_not_sampled_again_and_judged_once() -> None:
    recorded: dict[int, Any] = {}
    seen: list[str] = []

    def reply(asked: str) -> str:
        seen.append(asked)
        return f"<answer>{len(seen) % 2}</answer>"

    first, _ = open_rollouts(reply, recorded)
    sampled = first.collect(4, ASKED)
    second, student = open_rollouts(reply, recorded)
    assert second.collect(4, ASKED) == sampled
    judged = second.judge(4, sampled)
    assert [one.verdict for group in judged for one in group[:3]] == [1, 0] * 3
    third, idle = open_rollouts(reply, recorded)
    assert third.judge(4, third.collect(4, ASKED)) == judged
    assert (student.asked, idle.asked, len(seen)) == ([], [], 6)
    assert third.collect(5, ASKED) != judged


@pytest.mark.parametrize("correction", ["none", "truncate_token"])
def test_records_are_used_with_log_probs_of_sampling_only_where_a_correction_needs_them(correction: Any) -> None:
    """Older records have log-probs before temperature, top-k and top-p, and no mark."""
    rollouts, said = make(objective=replace(PAPER, rollout_correction=correction))
    kept: dict[int, Any] = {}
    rollouts._state = SimpleNamespace(read_record=kept.get, record=kept.__setitem__)
    assert rollouts._read_record(0) is None
    rollouts._record(0, [group("28")], judged=True)
    assert rollouts._read_record(0) == kept[0]
    assert said == []
    del kept[0]["log_probs"]
    assert (rollouts._read_record(0) == kept[0]) == (correction == "none")
    assert len(said) == (correction != "none")
    assert all("step 1: recorded answers have no log-probs of sampling" in line for line in said)

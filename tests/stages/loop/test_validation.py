"""Validation in the loop: greedy answers against each question's own reference, and the step that is kept."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.corpora.rows import Question
from stages.engines.engine import Answer, Request
from stages.loop.validation import Validation

ASKED = [Question(f"q{n}", (), (), ({"role": "user", "content": f"{n}?"},), None, str(n), "", "") for n in range(4)]


class Student:
    """An engine that answers `right` of the questions with their numbers; whoever is last is ready first."""

    def __init__(self) -> None:
        self.right: set[int] = set()
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        self.asked = list(requests)
        for place in reversed(range(len(requests))):
            number = int(requests[place].name[1:])
            yield place, [Answer(0, str(number if number in self.right else 9), (1,), "stop", 3, 1)]


class LoopJudge:
    """A running judge that finds every answer right, and says nothing about those with `silent`."""

    chat, checkpoint = SimpleNamespace(encode_prompt=lambda messages, images: []), SimpleNamespace(context_tokens=99)

    def __init__(self, silent: str) -> None:
        self._silent, self.asked = silent, 0

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for place, request in enumerate(requests):
            self.asked += 1
            says = "hm" if self._silent in request.messages[-1]["content"] else "<answer>1</answer>"
            yield place, [Answer(0, says, (1,), "stop", 3, 1)]


def validate(keep: str, scores: Sequence[set[int]], refused: str = "") -> tuple[list[dict[str, Any]], Any, Student]:
    """Validates after steps 0, 1, ...; returns the records, the kept copy (the step it is of) and the engine."""
    block = Ril(
        steps=9, learning_rate=1e-3, keep=keep, validation_every=4, sampling=Sampling(max_tokens=8, temperature=0.7)
    )
    rows: list[dict[str, Any]] = []
    now = SimpleNamespace(step=0)
    state: Any = SimpleNamespace(rows=lambda name: rows, copy=None)
    job: Any = SimpleNamespace(block=lambda _: block, measure_time=lambda _: contextlib.nullcontext())
    student = Student()
    models: Any = SimpleNamespace(
        engine=student,
        explain_refusal=lambda question: "too long" if question.id == refused else None,
        policy=SimpleNamespace(trainer=SimpleNamespace(copy_state=lambda: now.step)),
        judge=None,
    )
    validation = Validation(job, models, state, ASKED)
    assert [step for step in range(10) if validation.is_due(step)] == [0, 4, 8, 9]
    for now.step, student.right in enumerate(scores):
        validation.run(now.step)
    return rows, state.copy, student


def test_answers_are_greedy_and_compared_with_their_own_reference() -> None:
    rows, _, student = validate("last", [{1, 2, 3}, set(), {0}])
    assert [(row["step"], row["validation"]) for row in rows] == [(0, 0.75), (1, 0.0), (2, 0.25)]
    assert [(one.name, one.n, one.sampling.temperature, one.sampling.max_tokens) for one in student.asked] == [
        (f"q{n}", 1, 0.0, 8) for n in range(4)
    ]


def test_a_question_that_is_too_long_counts_as_wrong() -> None:
    rows, _, student = validate("last", [{0, 1, 2, 3}], refused="q2")
    assert [one.name for one in student.asked] == ["q0", "q1", "q3"]
    assert rows[0]["validation"] == 0.75


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("both", 1), ("last", None)])
def test_the_first_of_the_best_is_kept(keep: str, kept: int | None) -> None:
    assert validate(keep, [{1}, {0, 1}, {2}, {2, 3}])[1] == kept


class Talker:
    """An engine that says the same to every question."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for place, request in enumerate(requests):
            text = "mumble" if request.name == "q2" else "seven or eight of them"
            yield place, [Answer(0, text, (1,), "stop", 3, 1)]


def validate_free_text(scoring: str, judge: LoopJudge | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Validates once on three prose answers and a question that is too long; returns the rows and what was said."""
    block = Ril(steps=9, learning_rate=1e-3, validation_scoring=scoring, sampling=Sampling(max_tokens=8))
    prose = [replace(one, answer="between seven and eight in all, as far as one sees") for one in ASKED]
    rows: list[dict[str, Any]] = []
    said: list[str] = []
    state: Any = SimpleNamespace(rows=lambda name: rows, copy=None)
    job: Any = SimpleNamespace(
        name="ril",
        block=lambda kind: block if kind is Ril else kind(model="judge", max_tokens=8),
        measure_time=lambda _: contextlib.nullcontext(),
        progress=SimpleNamespace(say=said.append),
    )
    models: Any = SimpleNamespace(
        engine=Talker(), explain_refusal=lambda question: "too long" if question.id == "q3" else None, judge=judge
    )
    Validation(job, models, state, prose).run(4)
    return rows, said


def test_the_judge_of_the_loop_decides_what_no_rule_does() -> None:
    judge = LoopJudge(silent="mumble")
    rows, said = validate_free_text("rules_and_judge", judge)
    assert judge.asked == 3
    assert rows == [
        {"step": 4, "validation": pytest.approx(2 / 3), "validation/judged": 0.5, "validation/failed": 0.25}
    ]
    assert said == ["validation: decided by judge 50%, no verdict 25%, rule: no answer 25%"]
    rows, _ = validate_free_text("rules_and_judge", LoopJudge(silent=""))
    assert rows[0]["validation"] == 0  # the question that is too long is wrong, the others have no verdict
    assert rows[0]["validation/failed"] == 0.75


def test_rules_alone_ask_no_judge() -> None:
    judge = LoopJudge(silent="mumble")
    assert validate_free_text("rules", judge) == ([{"step": 4, "validation": 0.0}], [])
    assert judge.asked == 0
    rows, said = validate_free_text("rules_and_judge", None)
    assert rows == [{"step": 4, "validation": 0.0}]
    assert "has no judge: validation scores answers by rules alone" in said[0]

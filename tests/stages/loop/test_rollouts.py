"""The loop notices a judge that says the same to everything, and a student that says nothing; which records it uses."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from stages.config.objective import PAPER, Objective
from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.groups.response import STUDENT, Response
from stages.judging.exam import UselessJudge
from stages.loop.rollouts import CONSTANT_STEPS, Rollouts, tokenize_teacher_answer
from stages.responses.draws import TeacherAnswer
from stages.responses.variety import UselessAnswers
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

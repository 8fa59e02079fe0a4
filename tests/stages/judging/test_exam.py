"""The exam of judges: its files, its figures, and that a tiny judge's lessons hold nothing of it."""

import importlib.util
import random
import re
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import pytest

from stages.config.verdict import Verdict
from stages.config.world import KIND_NAMES
from stages.engines.engine import Answer, Request
from stages.judging.exam import (
    ATTACKS,
    CASES,
    ExamSitting,
    UselessJudge,
    check_exam,
    compute_exam_scores,
    examine,
    list_exam_items,
    read_exam_rows,
)
from stages.judging.judge import INSTRUCTION, JudgeVerdict, judge_by_rule, make_judge_messages, parse_verdict
from stages.tiny.builds import phrases
from stages.tiny.builds.lessons import draw_judge_example


@pytest.fixture(scope="module")
def maker(root) -> ModuleType:  # type: ignore[no-untyped-def]
    """The script that makes the files."""
    spec = importlib.util.spec_from_file_location("make_judge_cases", root / "tests/stages/judging/make_judge_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_makes(maker: ModuleType) -> None:
    for name, text in maker.texts().items():
        assert (maker.FOLDER / name).read_text(encoding="utf-8") == text, f"run: python {maker.__file__}"


def test_there_are_500_cases_half_of_each_kind_right_and_more_than_40_attacks() -> None:
    cases, attacks = read_exam_rows(CASES), read_exam_rows(ATTACKS)
    assert len(cases) == 500
    assert len(attacks) >= 40
    for kind in {case["kind"] for case in cases}:
        labels = [case["verdict"] for case in cases if case["kind"] == kind]
        assert sum(labels) * 2 == len(labels), kind
    assert {row["kind"] for row in attacks} >= {"fake verdict", "closed fence", "instruction", "opener", "other script"}
    assert {row["verdict"] for row in attacks} == {0, 1}
    assert all(row["twin"] != row["candidate"] for row in attacks)


def test_labels_are_what_the_words_say(maker: ModuleType) -> None:
    """Where reference and answer are single numbers in a frame, the label follows from comparing them."""
    for case in read_exam_rows(CASES):
        if case["kind"] in ("template", "near_miss"):
            frames = (*maker.FRAMES, "{x}", "Answer: {x}")
            same = any(frame.format(x=case["reference"]) == case["candidate"] for frame in frames)
            assert same == bool(case["verdict"]), case


def test_lessons_hold_no_frame_unit_or_attack_of_the_exam(maker: ModuleType) -> None:
    frames = {*phrases.FRAMES, *phrases.FIRM, *phrases.UNSURE, *phrases.NO_ANSWERS}
    assert not frames & {*maker.FRAMES, *maker.MARKED}
    assert not set(phrases.QUESTIONS) & set(maker.QUESTIONS)
    assert not set(phrases.UNITS) & {unit.strip() for unit in maker.UNITS}
    assert not set(phrases.WRAPS) & set(maker.WRAPS)
    known = [
        draw_judge_example(KIND_NAMES, 0, index)[0][1]["content"].removesuffix(INSTRUCTION) for index in range(2000)
    ]
    prompts = {
        make_judge_messages(item.question_text, item.reference, item.candidate)[1]["content"]
        for item in list_exam_items()
    }
    assert not prompts & {text + INSTRUCTION for text in known}
    lessons = "\n".join(known)
    for sign in ("‹", "Ignore", "ignore", "instruct", "grader", "Score", "Solution", "Thought", "step by step"):
        assert sign not in lessons, sign
    strange, examined = ({sign for sign in text if not sign.isascii()} for text in (lessons, "".join(prompts)))
    assert not strange & examined
    assert not any(map(str.isalpha, strange)), "no letter of another script"


def test_lessons_say_what_is_right() -> None:
    verdicts = [parse_verdict(draw_judge_example(KIND_NAMES, 3, index)[1]) for index in range(1000)]
    assert set(verdicts) == {0, 1}
    assert 0.38 < sum(filter(None, verdicts)) / 1000 < 0.52
    for index in range(1000):
        messages, target = draw_judge_example(KIND_NAMES, 3, index)
        reference = messages[1]["content"].split("<reference> ")[1].split(" </reference>")[0].replace(",", "")
        said = target.removeprefix("answer ").split(":")[0]
        assert (said == reference) == target.endswith(": same. <answer>1</answer>"), target
        assert (said != reference) == target.endswith(": different. <answer>0</answer>"), target
        assert "{" not in said, target
    assert draw_judge_example(KIND_NAMES, 3, 7) == draw_judge_example(KIND_NAMES, 3, 7)


def test_no_lesson_is_an_answer_of_the_exam() -> None:
    """Frames and prose of lessons are drawn at random, so what was drawn is compared; only bare numbers may be in
    both.
    """
    examined = {item.candidate for item in list_exam_items()}
    plain = {text for text in examined if not text or re.fullmatch(r"(Answer: )?\d+|The answer is \d+\.", text)}
    users = [draw_judge_example(KIND_NAMES, 1, index)[0][1]["content"] for index in range(5000)]
    drawn = {user.split("> ", 2)[2].split(" </candidate")[0] for user in users}
    assert len(drawn) > 3000
    assert not drawn & (examined - plain)


def test_the_figures_of_judges_that_are_easily_told() -> None:
    cases, attacks = read_exam_rows(CASES), read_exam_rows(ATTACKS)
    labels = [case["verdict"] for case in cases] + [row["verdict"] for row in attacks for _ in range(2)]

    def scores(marks: list[int | None]) -> dict[str, object]:
        return compute_exam_scores([JudgeVerdict(mark, "", None) for mark in marks])

    perfect = scores(list(labels))
    assert perfect["balanced_accuracy"] == 1.0
    assert perfect["attacks_held"] == len(attacks)
    assert perfect["attacks_lost"] == []
    kind_yes = scores([1] * len(labels))
    assert (kind_yes["balanced_accuracy"], kind_yes["right_found_right"], kind_yes["wrong_found_wrong"]) == (
        0.5,
        1.0,
        0.0,
    )
    silent = scores([None] * len(labels))
    assert (silent["balanced_accuracy"], silent["failed"], silent["attacks_held"]) == (0.0, len(labels), 0)
    fooled = list(labels)
    fooled[-1] = 1 - fooled[-1]
    assert scores(fooled)["attacks_lost"] == [attacks[-1]["id"]]
    with pytest.raises(ValueError, match="3 verdicts for an exam"):
        scores([1, 1, 1])


def test_no_rule_finds_an_answer_of_the_exam_right_and_only_empty_ones_wrong() -> None:
    ruled = {item.name: found.verdict for item in list_exam_items() if (found := judge_by_rule(item)) is not None}
    alone = {row["id"] for row in read_exam_rows(ATTACKS) if row["kind"] == "opener alone"}
    assert ruled == dict.fromkeys(alone, 0)


# --- judges that are of no use ----------------------------------------------------------------------------------------


class Replied:
    def __init__(self, question_id: str, verdict: int | None) -> None:
        self.question_id = question_id
        self.text = "I can't say" if verdict is None else f"hm. <answer>{verdict}</answer>"


def sit(mark: Callable[[int], int | None], said: list[str], lowest: float = 0.6) -> None:
    """Gives the replies of a judge in waves of 150; `mark` makes its verdict from the right one."""
    sitting = ExamSitting("verdict@x", Verdict(model="judge", min_exam_accuracy=lowest), said.append)
    cases = read_exam_rows(CASES)
    for start in range(0, len(cases), 150):
        sitting.watch([Replied(case["id"], mark(case["verdict"])) for case in cases[start : start + 150]])


COIN = random.Random(0)
USELESS: dict[str, Callable[[int], int | None]] = {
    "always right": lambda label: 1,
    "always wrong": lambda label: 0,
    "silent": lambda label: None,
    "contrary": lambda label: 1 - label,
    "a coin": lambda label: COIN.randrange(2),
    "nearly always right": lambda label: int(label == 1 or COIN.random() < 0.95),
}


@pytest.mark.parametrize("name", USELESS)
def test_a_useless_judge_ends_its_stage_while_it_answers(name: str) -> None:
    said: list[str] = []
    with pytest.raises(
        UselessJudge, match=r"verdict@x: the judge's balanced accuracy on \d+ labelled answers is 0"
    ) as raised:
        sit(USELESS[name], said)
    assert "below verdict.min_exam_accuracy = 0.6" in str(raised.value)
    assert int(re.findall(r"on (\d+) labelled", str(raised.value))[0]) < 500, "before the end"
    assert ("It says the same to everything" in str(raised.value)) == ("always" in name)
    constant = ("always right", "always wrong", "silent")
    assert any("all 150 verdicts so far are" in line for line in said) == (name in constant)


def test_a_weak_judge_passes_and_the_bound_is_the_parameters() -> None:
    """The smoke profile's judge, trained for 200 steps, has 0.66."""
    draw = random.Random(1)

    def weak(label: int) -> int:
        return label if draw.random() < 0.7 else 1 - label

    said: list[str] = []
    sit(weak, said)
    assert said == []
    with pytest.raises(UselessJudge, match=r"min_exam_accuracy = 0\.9"):
        sit(weak, said, lowest=0.9)
    sit(USELESS["always right"], said, lowest=0.0)


def test_the_exam_itself_is_checked_at_the_end() -> None:
    scores = compute_exam_scores([JudgeVerdict(1, "", None)] * (500 + 2 * len(read_exam_rows(ATTACKS))))
    assert scores["attacks_held"] == len(read_exam_rows(ATTACKS)), "all of them"
    with pytest.raises(UselessJudge, match="finds 100% of the right answers right and 0% of the wrong ones wrong"):
        check_exam(scores, 0.6, "verdict@x")


class ConstantEngine:
    """A judge engine that writes one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.chat = type("Chat", (), {"encode_prompt": lambda self, messages, images: [0] * 10})()
        self.checkpoint = type("Checkpoint", (), {"context_tokens": 512})()

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for place, _ in enumerate(requests):
            yield place, [Answer(0, self.text, (1,), "stop", 10, 1)]


def test_a_running_judge_can_be_examined() -> None:
    judge: Any = ConstantEngine("<answer>1</answer>")
    scores = examine(judge, Verdict(model="judge"))
    assert (scores["balanced_accuracy"], scores["right_found_right"]) == (0.5, 1.0)

"""Scoring of answers to users' questions: by rule where the rule is sure, else by a judge."""

import json
import random
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.benchmarks.rules.by_kind import score_by_rule
from stages.benchmarks.rules.named_scores import compute_anls, compute_vqa_accuracy, is_any_relaxed
from stages.benchmarks.split_scores import (
    JUDGE,
    NO_VERDICT,
    AnswerScore,
    count_deciders,
    describe_deciders,
    score_answers,
)
from stages.config.answer_scorer import ScorerName
from stages.corpora.answer_kinds import Reference, find_answer_kind, read_options, read_reference
from stages.corpora.quantities import find_quantities, read_quantity
from stages.corpora.rows import Question
from stages.corpora.scoring import is_correct
from stages.judging.judge import JudgeItem, JudgeVerdict
from stages.tiny.world.kinds import answer_in_style, ask_question

HERE = Path(__file__).parent
PAIRS = [json.loads(line) for line in (HERE / "is_correct_pairs.jsonl").read_text().splitlines()]
LABELLED = [json.loads(line) for line in (HERE / "labelled_answers.jsonl").read_text().splitlines()]


def ask(text: str, answer: str, answers: Sequence[str] = (), scorer: ScorerName = "auto") -> Question:
    message = {"role": "user", "content": text}
    return Question("q", (), (), (message,), None, answer, "s", "k", tuple(answers), scorer)


def refer(row: dict[str, Any]) -> Reference:
    return read_reference(ask(row["question"], row["reference"]))


# --- labelled answers -------------------------------------------------------------------------------------------------


def test_rules_agree_with_the_labels_wherever_they_are_sure() -> None:
    """Rows labelled by reading them, before the rules were applied to them.

    No judge was asked: this measures the rules alone. When first applied, before any correction, they were sure of 188
    of the first 324 rows and agreed with 183 labels (97.3 %), then of 33 of 65 harder rows and agreed with 30 (91 %).
    The eight causes were corrected since, so that the agreement asserted here is not that on unseen answers.
    """
    assert len(LABELLED) >= 300
    assert sum(row["hard"] for row in LABELLED) >= len(LABELLED) / 2
    assert {row["kind"] for row in LABELLED} == {"choice", "number", "yes/no", "list", "short text", "free text"}
    marks = [score_by_rule(row["answer"], refer(row)) for row in LABELLED]
    sure = [(row, mark) for row, mark in zip(LABELLED, marks, strict=True) if mark.sure]
    assert [row for row, mark in sure if mark.score != row["label"]] == []
    assert len(sure) >= 0.5 * len(LABELLED)
    easy = [mark.sure for row, mark in zip(LABELLED, marks, strict=True) if not row["hard"]]
    assert sum(easy) >= 0.9 * len(easy)


def test_without_a_judge_few_wrong_answers_are_accepted() -> None:
    """The best guess counts then: it accepts few wrong answers, and rejects other wordings."""
    accepted = [row for row in LABELLED if score_by_rule(row["answer"], refer(row)).score > row["label"]]
    wrong = sum(not row["label"] for row in LABELLED)
    assert len(accepted) <= 0.05 * wrong, [(row["reference"], row["answer"]) for row in accepted]


@pytest.mark.parametrize("row", PAIRS, ids=[f"{row['answer']} - {row['reference']}" for row in PAIRS])
def test_pairs_that_a_reader_decides(row: dict[str, Any]) -> None:
    assert (score_by_rule(row["answer"], Reference(row["reference"])).score == 1) is row["right"]


def test_the_kind_is_that_of_the_reference_alone() -> None:
    for row in LABELLED:
        assert refer(row).kind == row["kind"], row
    assert find_answer_kind("B", {}) == "choice"
    assert find_answer_kind("A very long answer that explains what is going on.", {}) == "free text"


# --- kinds, options, quantities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA. cat\nB. dog", {"A": "cat", "B": "dog"}),
        ("Which? (A) cat (B) a big dog (C) bird\nAnswer with the letter.", {"A": "cat", "B": "a big dog", "C": "bird"}),
        ("Which?\nA: 1.5\nB: 15\n", {"A": "1.5", "B": "15"}),
        ("A. is no option", {}),
        ("A picture of B. Smith", {}),
        ("A. B. Smith and A. Jones", {}),
        ("How many?", {}),
    ],
)
def test_options_are_read_from_the_question(question: str, options: dict[str, str]) -> None:
    assert read_options(question) == options


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("12 cm", 12, "length"),
        ("$5", 5, "dollars"),
        ("5 million", 5_000_000, ""),
        ("$2m", 2_000_000, "dollars"),
        ("50 per cent", 50, "per cent"),
        ("20 degrees Celsius", 20, "degrees Celsius"),
        ("60 km/h", 60, "kilometres an hour"),
        ("3 square metres", 3, "area"),
        ("7 dogs", 7, ""),
    ],
)
def test_a_quantity_is_a_number_with_its_unit(text: str, value: int, unit: str) -> None:
    found = read_quantity(text)
    assert found is not None
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize("text", ["10:30", "7 or 8", "Route 66 motel", "", "x", "3 dogs and a cat"])
def test_other_texts_are_no_quantities(text: str) -> None:
    assert read_quantity(text) is None


def test_quantities_of_a_long_text_are_bounded() -> None:
    assert len(find_quantities("7 cm " * 10_000)) == 64


# --- named scorers ----------------------------------------------------------------------------------------------------


def test_several_accepted_answers() -> None:
    several = Reference("sofa", ("sofa", "couch"))
    assert score_by_rule("A couch.", several).score == 1
    assert score_by_rule("a chair", several) == replace(score_by_rule("a table", several), score=0.0)
    assert read_reference(ask("What?", "sofa", ["sofa"])).accepted == ()


def test_vqa_accuracy_of_ten_people() -> None:
    people = ["red"] * 2 + ["dark red"] * 7 + ["pink"]
    question = ask("What colour?", "dark red", people)
    scores = score_answers([(question, text) for text in ("Red", "dark red", "the pink", "blue")], None)
    assert [one.score for one in scores] == [pytest.approx(2 / 3), 1.0, pytest.approx(1 / 3), 0.0]
    assert {one.decided_by for one in scores} == {"rule: vqa"}
    assert [one.correct for one in scores] == [True, True, False, False]
    assert compute_vqa_accuracy("two", ["2"]) == 1
    assert compute_vqa_accuracy("Two dogs.", ["2 dogs", "2 dogs", "3 dogs"]) == pytest.approx(2 / 3)


def test_anls() -> None:
    assert compute_anls("Hello World.", ["hello world"]) == 1
    assert compute_anls("hello wold", ["hello world"]) == pytest.approx(1 - 1 / 11)
    assert compute_anls("goodbye", ["hello world", "good bye"]) == pytest.approx(1 - 1 / 8)
    assert compute_anls("abcd", ["abxy"]) == 0  # half of it differs
    assert compute_anls("", [""]) == 1
    assert score_by_rule("<answer>hello wold</answer>", Reference("hello world", scorer="anls")).score > 0.9


def test_relaxed_accuracy_and_exact_text() -> None:
    assert is_any_relaxed("104", ["100"])
    assert not is_any_relaxed("106", ["100"])
    assert is_any_relaxed("$1,040.", ["1,000"])
    assert score_by_rule("Answer: 96", Reference("100", scorer="relaxed")).score == 1
    assert score_by_rule("The Cat", Reference("cat", scorer="exact")).score == 1
    assert score_by_rule("It is a cat", Reference("cat", scorer="exact")).score == 0
    assert score_by_rule("the dog", Reference("cat", ("cat", "dog"), scorer="exact")).rule == "exact"


# --- the judge --------------------------------------------------------------------------------------------------------


class StandIn:
    """Stands in for a judge: right if the reference's first word is in the candidate; silent about `silent`."""

    def __init__(self, silent: str = "\0") -> None:
        self.items: list[JudgeItem] = []
        self._silent = silent

    def __call__(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        self.items += items
        return [self._decide(item) for item in items]

    def _decide(self, item: JudgeItem) -> JudgeVerdict:
        if self._silent in item.candidate:
            return JudgeVerdict(None, "the judge did not reply", None)
        return JudgeVerdict(int(item.reference.split()[0] in item.candidate), "so", "key", asked=True)


def test_the_judge_gets_what_no_rule_decides_and_a_missing_verdict_invents_nothing() -> None:
    judge = StandIn(silent="mumble")
    number, text = ask("How many?", "7"), ask("Why?", "because it has rained all through the night")
    pairs = [
        (number, "7"),
        (number, "7 or 8"),
        (text, "<think>hm</think>because of the rain"),
        (text, "mumble"),
        (text, None),
        (text, ""),
    ]
    scores = score_answers(pairs, judge)
    assert [(one.score, one.decided_by) for one in scores] == [
        (1.0, "rule: number"),
        (1.0, JUDGE),
        (1.0, JUDGE),
        (None, NO_VERDICT),
        (0.0, "rule: no answer"),
        (0.0, "rule: no answer"),
    ]
    assert [item.candidate for item in judge.items] == ["7 or 8", "because of the rain", "mumble"]
    assert scores[1].judge_key == "key"
    assert scores[3].correct is None
    shares = count_deciders([one.decided_by for one in scores])
    assert describe_deciders(shares).startswith("judge 33%, rule: no answer 33%")
    unsure = score_answers(pairs[1:3], None)
    assert unsure == [AnswerScore(0.0, "rule: number, unsure"), AnswerScore(0.0, "rule: free text, unsure")]


def test_the_judge_reads_all_accepted_answers() -> None:
    judge = StandIn()
    score_answers([(ask("What?", "sofa", ["sofa", "couch", "sofa"]), "some furniture")], judge)
    assert judge.items[0].reference == "sofa or couch"


def test_every_answer_has_a_score_and_a_decider() -> None:
    marks = [score_by_rule(row["answer"], refer(row)) for row in LABELLED]
    assert Counter(mark.sure for mark in marks)[True] > 0
    assert all(0 <= mark.score <= 1 for mark in marks)


# --- the tiny world ---------------------------------------------------------------------------------------------------

TINY_KINDS = ("sum", "alternating", "largest", "odd", "total", "rises")


@given(st.randoms(use_true_random=False), st.sampled_from(TINY_KINDS), st.sampled_from(("steps", "arrows")), st.data())
def test_scores_of_the_tiny_world_are_those_of_the_last_number(
    choose: random.Random, kind: str, style: str, data: st.DataObject
) -> None:
    """Its references are numbers: without a judge every answer, also a damaged one, has the score that it had."""
    exercise = ask_question(kind, [choose.randint(0, 9) for _ in range(6)], choose)
    said = answer_in_style(exercise, style)
    place = data.draw(st.integers(0, len(said)))
    damaged = said[:place] + data.draw(st.sampled_from(("", "1", " ", ",", "->", "7 ", "-", "so "))) + said[place + 1 :]
    question = ask(exercise.question, exercise.answer)
    assert read_reference(question).kind == "number"
    for text in (said, damaged, said[:place]):
        (score,) = score_answers([(question, text)], None)
        assert score.correct is is_correct(text, exercise.answer), text


@given(st.text(st.sampled_from(string.digits + " ->:,.=+soAnswer"), max_size=30), st.integers(0, 99))
def test_garbage_of_a_tiny_model_has_the_score_that_it_had(text: str, reference: int) -> None:
    (score,) = score_answers([(ask("How many?", str(reference)), text)], None)
    assert score.correct is is_correct(text, str(reference))

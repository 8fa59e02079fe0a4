"""The judge's exam: labelled answers, and attacks paired with harmless twins, that every judge answers.

Verdicts are rewards, so the report shows the judge's error rate. The cases (`judge_cases.jsonl`) are numbers and words
in many notations, half of them wrong. The attacks (`judge_attacks.jsonl`) try to manipulate the judge; the judge
withstands an attack if its verdict equals that on the twin. tests/stages/judging/make_judge_cases.py writes both files.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stages.config.verdict import Verdict
from stages.engines.engine import Answer, Engine, Request
from stages.judging.judge import (
    AskQuestions,
    JudgeItem,
    JudgeQuestion,
    JudgeVerdict,
    judge_items,
    make_fit_check,
    make_judge_sampling,
    parse_verdict,
)

ONE_SIDED = 0.95  # share of one side from which on a useless judge is said to say the same to everything
FEWEST_VERDICTS = 50  # of each label, from which on the exam counts while it runs
CASES, ATTACKS = "judge_cases.jsonl", "judge_attacks.jsonl"


class Reply(Protocol):
    """A judge's reply, with the id of what it judged."""

    @property
    def question_id(self) -> str: ...
    @property
    def text(self) -> str: ...


def read_exam_rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of one file, CASES or ATTACKS."""
    return [json.loads(line) for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()]


def list_exam_items() -> list[JudgeItem]:
    """Returns all cases, then the twin and the attacked answer of each attack. No rule accepts any of them."""
    cases = [_make_item(row, "candidate") for row in read_exam_rows(CASES)]
    return cases + [_make_item(row, text) for row in read_exam_rows(ATTACKS) for text in ("twin", "candidate")]


def _make_item(row: Mapping[str, Any], text: str) -> JudgeItem:
    return JudgeItem(row["id"], row["question"], row["reference"], row[text])


def compute_exam_scores(found: Sequence[JudgeVerdict]) -> dict[str, Any]:
    """Returns metrics of the verdicts on `list_exam_items()`, given in the same order.

    Balanced accuracy is the mean of the recalls on right and on wrong answers; a failed verdict counts as an error. The
    judge withstands an attack if its verdict equals that on the twin and neither failed. Raises ValueError when the
    number of verdicts does not match.
    """
    cases, attacks = read_exam_rows(CASES), read_exam_rows(ATTACKS)
    marks = [verdict.verdict for verdict in found]
    if len(marks) != len(cases) + 2 * len(attacks):
        raise ValueError(f"{len(marks)} verdicts for an exam of {len(cases)} cases and {len(attacks)} attacks")
    judged = list(zip(cases, marks, strict=False))
    kinds = list(dict.fromkeys(case["kind"] for case in cases))
    pairs = list(zip(marks[len(cases) :: 2], marks[len(cases) + 1 :: 2], strict=True))
    held = [twin == attacked and attacked is not None for twin, attacked in pairs]
    return {
        "cases": len(cases),
        "balanced_accuracy": balanced_accuracy(judged),
        "right_found_right": _share(judged, 1),
        "wrong_found_wrong": _share(judged, 0),
        "by_kind": {kind: balanced_accuracy([one for one in judged if one[0]["kind"] == kind]) for kind in kinds},
        "failed": sum(mark is None for mark in marks),
        "attacks": len(attacks),
        "attacks_held": sum(held),
        "attacks_lost": [row["id"] for row, holds in zip(attacks, held, strict=True) if not holds],
    }


class UselessJudge(ValueError):
    """The judge hardly tells right from wrong answers; the message has its accuracy and the bound."""


def check_exam(scores: Mapping[str, Any], lowest: float, title: str) -> None:
    """Raises UselessJudge when the balanced accuracy is below `lowest`.

    A judge that says the same to everything has 0.5, and withstands every attack.
    """
    accuracy, right, wrong = (scores[key] for key in ("balanced_accuracy", "right_found_right", "wrong_found_wrong"))
    if accuracy < lowest:
        said = " It says the same to everything." if max(right, wrong) > ONE_SIDED else ""
        raise UselessJudge(
            f"{title}: the judge's balanced accuracy on {scores['cases']} labelled answers is {accuracy:.2f}, below "
            f"verdict.min_exam_accuracy = {lowest:g}: it finds {right:.0%} of the right answers right and {wrong:.0%} "
            f"of the wrong ones wrong.{said} No verdict is written; those that it gave stay stored. Use another "
            "judge, or lower the bound"
        )


class ExamSitting:
    """Follows the exam while the judge answers."""

    def __init__(self, title: str, block: Verdict, say: Callable[[str], None]) -> None:
        self._title, self._block, self._say = title, block, say
        self._labels = {row["id"]: row["verdict"] for row in read_exam_rows(CASES)}
        self._marks: dict[str, int | None] = {}
        self._given: Counter[int | None] = Counter()

    def watch(self, replies: Sequence[Reply]) -> None:
        """Adds replies of the judge.

        Says when all verdicts are the same. Raises UselessJudge when the cases answered so far show it.
        """
        for reply in replies:
            mark = parse_verdict(reply.text, self._block.form)
            self._given[mark] += 1
            if reply.question_id in self._labels:
                self._marks[reply.question_id] = mark
        judged = [({"verdict": self._labels[name]}, mark) for name, mark in self._marks.items()]
        (mark, same), total = self._given.most_common(1)[0], sum(self._given.values())
        if same == total >= FEWEST_VERDICTS:
            self._say(f"warning: {self._title}: all {total} verdicts so far are {mark}")
        if all(sum(one["verdict"] == label for one, _ in judged) >= FEWEST_VERDICTS for label in (0, 1)):
            scores = {
                "cases": len(judged),
                "balanced_accuracy": balanced_accuracy(judged),
                "right_found_right": _share(judged, 1),
                "wrong_found_wrong": _share(judged, 0),
            }
            check_exam(scores, self._block.min_exam_accuracy, self._title)


def make_engine_ask(judge: Engine, block: Verdict) -> AskQuestions:
    """Returns a function that asks a running judge greedily; a reply that failed is None."""

    def ask(questions: Sequence[JudgeQuestion]) -> list[Answer | None]:
        sampling = make_judge_sampling(block)
        found = dict(judge.iter_outcomes(Request(one.id, one.messages, one.images, sampling) for one in questions))
        outcomes = [found[place] for place in range(len(questions))]
        return [None if isinstance(outcome, str) or outcome[0].failed else outcome[0] for outcome in outcomes]

    return ask


def judge_beside_training(items: Sequence[JudgeItem], judge: Engine, block: Verdict) -> list[JudgeVerdict]:
    """Returns the verdicts of a running judge on `items`."""
    fits = make_fit_check(judge.chat, judge.checkpoint.context_tokens, block.max_tokens)
    return judge_items(items, make_engine_ask(judge, block), fits, block.form)


def examine(judge: Engine, block: Verdict) -> dict[str, Any]:
    """Returns the exam scores of a running judge; for a loop in which it says the same to every answer."""
    return compute_exam_scores(judge_beside_training(list_exam_items(), judge, block))


def balanced_accuracy(judged: Sequence[tuple[Mapping[str, Any], int | None]]) -> float:
    """Returns the mean recall over right and wrong cases, given (case, verdict) pairs."""
    return (_share(judged, 1) + _share(judged, 0)) / 2


def _share(judged: Sequence[tuple[Mapping[str, Any], int | None]], label: int) -> float:
    marks = [mark == label for case, mark in judged if case["verdict"] == label]
    return sum(marks) / len(marks)

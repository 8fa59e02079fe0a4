"""The judge's exam: labelled answers, and attacks paired with harmless twins, that every judge answers.

Verdicts are rewards, so the report shows the judge's error rate. The cases (`judge_cases.jsonl`) are numbers and words
in many notations, half of them wrong. The attacks (`judge_attacks.jsonl`) try to manipulate the judge; the judge
withstands an attack if its verdict equals that on the twin. tests/stages/judging/make_judge_cases.py writes both files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.judge import JudgeItem, JudgeVerdict

CASES, ATTACKS = "judge_cases.jsonl", "judge_attacks.jsonl"


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


def balanced_accuracy(judged: Sequence[tuple[Mapping[str, Any], int | None]]) -> float:
    """Returns the mean recall over right and wrong cases, given (case, verdict) pairs."""
    return (_share(judged, 1) + _share(judged, 0)) / 2


def _share(judged: Sequence[tuple[Mapping[str, Any], int | None]], label: int) -> float:
    marks = [mark == label for case, mark in judged if case["verdict"] == label]
    return sum(marks) / len(marks)

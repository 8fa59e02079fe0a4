"""Scores answers to users' questions: by rule where the rule is sure, else by a judge.

Used by the held-out split, by validation in the loop and so by `ril.keep: best`. Who decided is kept with each answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.benchmarks.rules.by_kind import RuleMark, score_by_rule
from stages.corpora.answer_kinds import read_reference
from stages.corpora.final_answers import strip_reasoning
from stages.corpora.rows import Question
from stages.judging.judge import JudgeItem, JudgeVerdict

JUDGE, NO_VERDICT, UNSURE = "judge", "no verdict", ", unsure"
RIGHT = 0.5  # score from which on an answer counts as right where a score is between 0 and 1
AskVerdicts = Callable[[Sequence[JudgeItem]], list[JudgeVerdict]]


@dataclass(frozen=True)
class AnswerScore:
    """The score of one answer."""

    score: float | None  # 0 to 1; None without a verdict: the answer is left out of the mean
    decided_by: str  # "rule: number", "judge", "no verdict", or "rule: number, unsure" where no judge was asked
    judge_key: str = ""  # of the judge's text in the response store

    @property
    def correct(self) -> bool | None:
        """Whether the answer counts as right; None without a verdict."""
        return None if self.score is None else self.score >= RIGHT


REFUSED_SCORE = AnswerScore(0.0, "rule: no answer")  # of a prompt that the model rejected


def score_answers(pairs: Iterable[tuple[Question, str | None]], judge: AskVerdicts | None) -> list[AnswerScore]:
    """Returns the score of each answer to its question, in order; None is an answer that was never given, and wrong.

    Without `judge` the best guess of an unsure rule counts. All answers that no rule decides are given to `judge` in
    one call. An answer on which it gives no verdict has no score.
    """
    scores: list[AnswerScore] = []
    asked: list[tuple[int, JudgeItem]] = []
    for place, (question, text) in enumerate(pairs):
        if text is None:
            scores.append(REFUSED_SCORE)
            continue
        reference = read_reference(question)
        mark = score_by_rule(text, reference)
        scores.append(_make_score(mark))
        if judge is not None and not mark.sure:
            wanted = " or ".join(reference.texts)
            asked.append((place, JudgeItem(question.id, question.text, wanted, strip_reasoning(text))))
    if judge is not None and asked:
        verdicts = judge([item for _, item in asked])
        for (place, _), verdict in zip(asked, verdicts, strict=True):
            scores[place] = _read_score(verdict)
    return scores


def _make_score(mark: RuleMark) -> AnswerScore:
    return AnswerScore(mark.score, f"rule: {mark.rule}{'' if mark.sure else UNSURE}")


def _read_score(verdict: JudgeVerdict) -> AnswerScore:
    if verdict.verdict is None:
        return AnswerScore(None, NO_VERDICT, verdict.response_key or "")
    by = JUDGE if verdict.asked else "rule: no answer"
    return AnswerScore(float(verdict.verdict), by, verdict.response_key or "")


def count_deciders(decided_by: Sequence[str]) -> dict[str, float]:
    """Returns the share of the answers that each rule, or the judge, decided, by name."""
    return {name: decided_by.count(name) / len(decided_by) for name in sorted(set(decided_by))}


def describe_deciders(shares: dict[str, float]) -> str:
    """Returns the shares in one line: "rule: number 61 %, judge 38 %, no verdict 1 %"."""
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered)


def make_row_fields(score: AnswerScore) -> dict[str, Any]:
    """Returns the columns of a row of predictions that say how its answer was scored."""
    return {
        "correct": score.correct,
        "score": score.score,
        "state": "failed" if score.score is None else "ok",
        "decided_by": score.decided_by,
        "judge_key": score.judge_key,
    }

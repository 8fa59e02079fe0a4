"""Verdict: the judge compares each answer of one teacher with the reference, shared by all experiments (§3.3).

Reads    data/teacher/<id>, data/questions, data/model/<verdict.model>; params: verdict
Writes   data/verdict/<id>: one row per answer; reports/verdict/<id>/metrics.json
Run      dvc repro verdict@<id>

A verdict is 1, 0 or null. Null means that the judge gave no verdict and is never counted as 0 (trap T28). The judge
also answers an exam of labelled answers and attacks; the metrics and the report contain its scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from stages.config.verdict import Verdict
from stages.corpora.rows import IMITATION_SPLITS, Question, find_questions
from stages.job.files import write_shards
from stages.job.job import Job
from stages.job.lazy_sequence import LazySequence
from stages.job.shards import Shards
from stages.judging.exam import ExamSitting, check_exam, compute_exam_scores, list_exam_items
from stages.judging.faults import turn_verdict
from stages.judging.judge import (
    JudgeItem,
    JudgeQuestion,
    JudgeVerdict,
    VerdictCounts,
    count_verdicts,
    iter_verdicts,
    make_fit_check,
    make_judge_sampling,
)
from stages.responses.answers import Generation, fetch_each_answer
from stages.responses.schemas import VERDICTS
from stages.responses.store import StoredAnswer
from stages.vlm.checkpoint import open_verified
from stages.vlm.reader import load_chat


def run(job: Job) -> None:
    """Writes rows of VERDICTS, one per teacher answer, in the order of the answers.

    Raises RuntimeError when more than `max_failed_share` of the verdicts failed, UselessJudge when its balanced
    accuracy in the exam is below `min_exam_accuracy`, ValueError for an answer to an unknown question.
    """
    judge = job.block(Verdict)
    checkpoint = job.input(f"data/model/{judge.model}")
    answers = Shards(job.input(f"data/teacher/{job.item}"))
    names = {row["question_id"] for row in answers.iter_rows(["question_id"])}
    asked = find_questions(job.input("data/questions"), IMITATION_SPLITS, names)
    if unknown := names - asked.keys():
        raise ValueError(
            f"{job.name}: no question {min(unknown)!r} in data/questions; run: dvc repro teacher@{job.item}"
        )

    sitting = ExamSitting(job.name, judge, job.progress.say)
    generation = Generation(checkpoint, make_judge_sampling(judge), watch=sitting.watch if judge.exam else None)

    def ask(prompts: Sequence[JudgeQuestion]) -> Iterator[StoredAnswer | None]:
        with job.measure_time("generate"):
            # a rejected prompt is a failed verdict and counts towards max_failed_share
            replies = fetch_each_answer(job, generation, prompts, job.name, max_reject_share=1.0)
        return (reply[0] if reply else None for reply in replies)

    exam = list_exam_items() if judge.exam else []
    items = AnswersToJudge(exam, answers, asked, judge.rule_first)
    opened = open_verified(checkpoint, job.store)
    fits = make_fit_check(load_chat(opened), opened.context_tokens, judge.max_tokens)
    given = iter_verdicts(items, ask, fits, judge.form)
    of_exam = list(islice(given, len(exam)))
    scores = compute_exam_scores(of_exam) if exam else None
    if scores is not None:
        check_exam(scores, judge.min_exam_accuracy, job.name)
    counts = VerdictCounts()
    with job.writing() as folder:
        write_shards(folder, make_rows(answers, given, counts, judge.turned), VERDICTS)
        counts.check_failures(judge.max_failed_share, job.name)
    of_judge = count_verdicts(of_exam)
    free = of_judge.unconstrained + counts.unconstrained
    if judge.form == "tag" and judge.constrained and free:
        job.progress.say(
            f"{job.name}: {free / (of_judge.asked + counts.asked):.0%} of the judge's texts do not match the pattern "
            "of verdict.constrained: this engine does not enforce patterns. Their verdicts are parsed as written"
        )
    statistics: dict[str, Any] = {
        "verdicts": counts.verdicts,
        "correct_share": counts.correct / max(counts.verdicts - counts.failed, 1),
        "failed": counts.failed,
        "by_rule": counts.verdicts - counts.asked,
    }
    job.write_metrics({**statistics, "exam": scores})
    if scores is not None:
        statistics |= {key: scores[key] for key in ("balanced_accuracy", "attacks", "attacks_held")}
    job.progress.show_table(f"Verdicts on teacher {job.item}", [statistics])


class AnswersToJudge(LazySequence[JudgeItem]):
    """The items of the exam, then the answers of a teacher, which are read from files on access.

    The exam comes first: a useless judge is found at once.
    """

    def __init__(
        self, exam: Sequence[JudgeItem], answers: Shards, questions: Mapping[str, Question], rule_first: bool
    ) -> None:
        """`answers` has rows of ANSWERS, `questions` the question of each by id."""
        self._exam, self._answers, self._questions, self._rule_first = exam, answers, questions, rule_first

    def __len__(self) -> int:
        return len(self._exam) + len(self._answers)

    def read_item(self, place: int) -> JudgeItem:
        if place < len(self._exam):
            return self._exam[place]
        row = self._answers.read_row(place - len(self._exam), ["question_id", "response"])
        question = self._questions[row["question_id"]]
        return JudgeItem(question.id, question.text, question.answer, row["response"], self._rule_first)


def make_rows(
    answers: Shards, given: Iterator[JudgeVerdict], counts: VerdictCounts, turned: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yields rows of VERDICTS, one per answer, and adds their verdicts to `counts`; a share of `turned` errs."""
    columns = ["question_id", "sample", *(["response"] if turned else [])]
    for row, said in zip(answers.iter_rows(columns), given, strict=True):
        one = turn_verdict(said, row["question_id"], row["response"], turned) if turned else said
        counts.add(one)
        yield {
            "question_id": row["question_id"],
            "sample": row["sample"],
            "verdict": one.verdict,
            "explanation": one.explanation,
            "response_key": one.response_key,
        }

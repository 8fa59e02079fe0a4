"""Verdict: the judge compares each answer of one teacher with the reference, shared by all experiments (§3.3).

Reads    data/teacher/<id>, data/questions, data/model/<verdict.model>; params: verdict
Writes   data/verdict/<id>: one row per answer; reports/verdict/<id>/metrics.json
Run      dvc repro verdict@<id>

A verdict is 1, 0 or null. Null means that the judge gave no verdict and is never counted as 0 (trap T28). The judge
also answers an exam of labelled answers and attacks; the metrics and the report contain its scores.
"""

from collections.abc import Sequence
from typing import Any

from stages.config.verdict import Verdict
from stages.corpora.rows import IMITATION_SPLITS, find_questions
from stages.job.files import read_shards, write_shards
from stages.job.job import Job
from stages.judging.exam import ExamSitting, check_exam, compute_exam_scores, list_exam_items
from stages.judging.judge import (
    JudgeItem,
    JudgeQuestion,
    check_failures,
    judge_items,
    make_fit_check,
    make_judge_sampling,
    share_of_unconstrained,
)
from stages.responses.answers import Generation, fetch_answers
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
    judged = read_shards(job.input(f"data/teacher/{job.item}")).to_pylist()
    asked = find_questions(job.input("data/questions"), IMITATION_SPLITS, (row["question_id"] for row in judged))
    unknown = [row["question_id"] for row in judged if row["question_id"] not in asked]
    if unknown:
        raise ValueError(f"{job.name}: no question {unknown[0]!r} in data/questions; run: dvc repro teacher@{job.item}")

    sitting = ExamSitting(job.name, judge.min_exam_accuracy, job.progress.say)
    generation = Generation(checkpoint, make_judge_sampling(judge), watch=sitting.watch if judge.exam else None)

    def ask(prompts: Sequence[JudgeQuestion]) -> list[StoredAnswer | None]:
        with job.measure_time("generate"):
            # a rejected prompt is a failed verdict and counts towards max_failed_share
            replies = fetch_answers(job, generation, prompts, job.name, max_reject_share=1.0)
        return [reply[0] if reply else None for reply in replies]

    items = [
        JudgeItem(question.id, question.text, question.answer, row["response"], judge.rule_first)
        for row, question in ((row, asked[row["question_id"]]) for row in judged)
    ]
    exam = list_exam_items() if judge.exam else []
    opened = open_verified(checkpoint, job.store)
    fits = make_fit_check(load_chat(opened), opened.context_tokens, judge.max_tokens)
    given = judge_items([*exam, *items], ask, fits)  # the exam first: a useless judge is found at once
    found = given[len(exam) :]
    free = share_of_unconstrained(given) if judge.constrained else 0.0
    if free:
        job.progress.say(
            f"{job.name}: {free:.0%} of the judge's texts do not match the pattern of verdict.constrained: this engine "
            "does not enforce patterns. Their verdicts are parsed as written"
        )
    scores = compute_exam_scores(given[: len(exam)]) if exam else None
    if scores is not None:
        check_exam(scores, judge.min_exam_accuracy, job.name)
    failed = check_failures(found, judge.max_failed_share, job.name)
    rows = [
        {
            "question_id": row["question_id"],
            "sample": row["sample"],
            "verdict": one.verdict,
            "explanation": one.explanation,
            "response_key": one.response_key,
        }
        for row, one in zip(judged, found, strict=True)
    ]
    with job.writing() as folder:
        write_shards(folder, rows, VERDICTS)
    statistics: dict[str, Any] = {
        "verdicts": len(found),
        "correct_share": sum(one.verdict == 1 for one in found) / max(len(found) - failed, 1),
        "failed": failed,
        "by_rule": sum(not one.asked for one in found),
    }
    job.write_metrics({**statistics, "exam": scores})
    if scores is not None:
        statistics |= {key: scores[key] for key in ("balanced_accuracy", "attacks", "attacks_held")}
    job.progress.show_table(f"Verdicts on teacher {job.item}", [statistics])

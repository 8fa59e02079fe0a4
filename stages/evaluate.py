"""Evaluate: scores of one model on the held-out split.

Reads    the model of evaluations.<id>.checkpoint, data/questions; params: evaluate, evaluations.<id>
Writes   data/evaluate/<id>: one row a question with answer and score; reports/evaluate/<id>/metrics.json
Run      dvc repro evaluate@ril

All models get the same questions in the same words, greedily. With `shuffled_images` everything is asked once more with the
pictures exchanged among questions of one source: what is still right then was not read off the picture.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from stages.benchmarks.scoring import is_correct, standard_error
from stages.corpora import Question, read_questions
from stages.job import Job, seed_for
from stages.job.blocks import Evaluate, Evaluation, Sampling
from stages.job.files import write_shards
from stages.responses import StoredAnswer
from stages.responses.answers import answers

PREDICTIONS = pa.schema(
    [
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("response", pa.string()),
        ("reference", pa.string()),
        ("correct", pa.bool_()),
        ("correct_shuffled", pa.bool_()),
        ("finish_reason", pa.string()),
        ("completion_tokens", pa.int32()),
        ("response_key", pa.string()),
    ]
)


def run(job: Job) -> None:
    """Writes predictions and scores of one model."""
    block = job.block(Evaluate)
    questions = read_questions(job.input("data/questions"), block.split)
    shuffled = exchanged(questions) if block.shuffled_images else []
    every = asked(job, [*questions, *shuffled], block)
    found, seen_otherwise = every[: len(questions)], every[len(questions) :]
    right = [is_correct(answer.text, q.answer) for answer, q in zip(found, questions, strict=True)]
    blind: list[bool | None] = [None] * len(questions)
    if shuffled:
        blind = [is_correct(answer.text, q.answer) for answer, q in zip(seen_otherwise, questions, strict=True)]

    rows = [
        {
            "question_id": question.id,
            "kind": question.kind,
            "response": answer.text,
            "reference": question.answer,
            "correct": correct,
            "correct_shuffled": correct_blind,
            "finish_reason": answer.finish_reason,
            "completion_tokens": answer.completion_tokens,
            "response_key": answer.key,
        }
        for question, answer, correct, correct_blind in zip(questions, found, right, blind, strict=True)
    ]
    with job.writing() as folder:
        write_shards(folder, rows, PREDICTIONS)
    metrics = scores(rows)
    job.write_metrics(metrics)
    shown = {"accuracy": metrics["accuracy"], "shuffled": metrics.get("accuracy_shuffled"), **metrics["by_kind"]}
    job.progress.table(job.block(Evaluation).title, [{key: value for key, value in shown.items() if value is not None}])


def asked(job: Job, questions: Sequence[Question], block: Evaluate) -> list[StoredAnswer]:
    """One greedy answer to each question."""
    (folder,) = (path for path in job.inputs if path != job.root / "data/questions")
    checkpoint = job.input(str(folder.relative_to(job.root)))
    greedy = Sampling(temperature=0.0, max_tokens=block.max_tokens)
    with job.timed("generate"):
        return [samples[0] for samples in answers(job, checkpoint, questions, greedy, n=1, draw=0, title=job.name)]


def exchanged(questions: Sequence[Question]) -> list[Question]:
    """The questions with pictures of others from the same source; nobody keeps its own where there is more than one."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        by_source[question.source].append(place)
    result = list(questions)
    for source, places in by_source.items():
        order = places[:]
        random.Random(seed_for("shuffled images", source)).shuffle(order)
        for receiver, giver in zip(order, order[1:] + order[:1], strict=True):  # one cycle: no fixed point
            other = questions[giver]
            result[receiver] = replace(questions[receiver], images=other.images, image_sha256=other.image_sha256)
    return result


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its standard error, by kind, with shuffled images; mean tokens; share of answers that were cut."""
    count = len(rows)
    accuracy = sum(row["correct"] for row in rows) / count
    kinds = sorted({row["kind"] for row in rows})
    metrics: dict[str, Any] = {
        "questions": count,
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, count),
        "by_kind": {kind: _share([row["correct"] for row in rows if row["kind"] == kind]) for kind in kinds},
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / count,
        "truncated_share": _share([row["finish_reason"] == "length" for row in rows]),
    }
    if rows[0]["correct_shuffled"] is not None:
        metrics["accuracy_shuffled"] = _share([row["correct_shuffled"] for row in rows])
    return metrics


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)

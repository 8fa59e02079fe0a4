"""Pool: selects the teachers and the answers that the student learns from (§4.3).

Reads    data/teacher/<id> and data/verdict/<id> of the teachers in pool.teachers; params: pool
Writes   data/pool: one row per question with all its answers; reports/pool/metrics.json
Run      dvc repro pool
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from stages.config.pool import Pool
from stages.job.files import read_shards, write_shards
from stages.job.job import Job
from stages.responses.schemas import POOL, compute_answer_statistics
from stages.responses.style import compute_style, find_distinct
from stages.responses.variety import AnswerVariety

PoolRow = Mapping[str, Any]


def run(job: Job) -> None:
    """Writes rows of POOL, sorted by question; questions without a remaining answer are omitted.

    Raises MissingInput when a selected teacher has no answers or verdicts, UselessAnswers when its answers are empty or
    all the same, ValueError when answers and verdicts do not match or when no answer remains.
    """
    pool = job.block(Pool)
    kept: dict[str, list[PoolRow]] = {}
    metrics: dict[str, Any] = {}
    for teacher in sorted(pool.teachers):
        joined = _join_verdicts(job, teacher)
        variety = AnswerVariety(f"{job.name}: teacher {teacher}", pool, job.progress.say)
        variety.add((row["question_id"], row["response"]) for row in joined)
        kept[teacher], dropped = _choose_answers(joined, pool)
        metrics[teacher] = {**_compute_statistics(joined), "kept": len(kept[teacher]), **dropped}
    rows = _pool_by_question(kept)
    metrics["questions"] = len(rows)
    if not rows:
        raise ValueError(
            "no answer is left for the pool; set pool.truncated or pool.wrong to keep, or raise the teachers' "
            "max_tokens"
        )
    with job.writing() as folder:
        write_shards(folder, rows, POOL)
    job.write_metrics(metrics)
    job.progress.show_table(
        f"Pool: {len(rows)} questions", [{"teacher": name, **metrics[name]} for name in sorted(pool.teachers)]
    )


def _choose_answers(joined: Sequence[PoolRow], pool: Pool) -> tuple[list[PoolRow], dict[str, int]]:
    """Returns the answers of one teacher that `pool` keeps, and counts of dropped answers by first matching reason."""
    keeps = pool.truncated == "keep"
    whole = [row for row in joined if row["finish_reason"] != "length" or (keeps and row["response"])]
    right = [row for row in whole if pool.wrong == "keep" or row["verdict"] != 0]
    varied = right if pool.near_duplicates == "keep" else _drop_near_duplicates(right, pool.alike)
    dropped = {
        "dropped_truncated": len(joined) - len(whole),
        "dropped_wrong": len(whole) - len(right),
        "dropped_near_duplicates": len(right) - len(varied),
    }
    return varied, dropped


def _drop_near_duplicates(rows: Sequence[PoolRow], alike: float) -> list[PoolRow]:
    """Returns `rows` (sorted by question) without near-duplicates of an earlier answer to the same question."""
    varied: list[PoolRow] = []
    for _, group in groupby(rows, key=lambda row: row["question_id"]):
        answers = list(group)
        varied += [answers[place] for place in find_distinct([row["response"] for row in answers], alike)]
    return varied


def _join_verdicts(job: Job, teacher: str) -> list[dict[str, Any]]:
    """Returns a teacher's answers with their verdicts, sorted by question and sample."""
    folders = {kind: job.input(f"data/{kind}") / teacher for kind in ("teacher", "verdict")}
    for kind, folder in folders.items():
        if not folder.is_dir():
            raise job.explain_missing(f"data/{kind}/{teacher}")
    verdicts = {
        (row["question_id"], row["sample"]): row["verdict"]
        for row in read_shards(folders["verdict"]).select(["question_id", "sample", "verdict"]).to_pylist()
    }
    answers = read_shards(folders["teacher"]).drop_columns(["token_ids"]).to_pylist()
    if verdicts.keys() != {(row["question_id"], row["sample"]) for row in answers}:
        raise ValueError(
            f"data/verdict/{teacher} and data/teacher/{teacher} hold different answers; run dvc repro verdict@{teacher}"
        )
    joined = [{**row, "verdict": verdicts[row["question_id"], row["sample"]]} for row in answers]
    return sorted(joined, key=lambda row: (row["question_id"], row["sample"]))


def _pool_by_question(kept: Mapping[str, Sequence[PoolRow]]) -> list[dict[str, Any]]:
    """Returns one row per question with all its answers, ordered by teacher and sample."""
    by_question: dict[str, list[dict[str, Any]]] = {}
    for teacher, rows in kept.items():
        for row in rows:
            answer = {
                "teacher": teacher,
                "sample": row["sample"],
                "text": row["response"],
                "verdict": row["verdict"],
                "finish_reason": row["finish_reason"],
            }
            by_question.setdefault(row["question_id"], []).append(answer)
    return [{"question_id": question, "answers": by_question[question]} for question in sorted(by_question)]


def _compute_statistics(rows: Sequence[PoolRow]) -> dict[str, float]:
    """Returns length, style and accuracy of one teacher's answers, dropped ones included.

    Failed verdicts are excluded from accuracy.
    """
    judged = [row["verdict"] for row in rows if row["verdict"] is not None]
    given = compute_answer_statistics(rows)
    return {
        "answers": given["answers"],
        "accuracy": sum(judged) / max(len(judged), 1),
        "failed_verdicts": len(rows) - len(judged),
        "mean_tokens": given["mean_tokens"],
        "mean_tokens_right": _mean_tokens([row for row in rows if row["verdict"] == 1]),
        "mean_tokens_wrong": _mean_tokens([row for row in rows if row["verdict"] == 0]),
        "truncated_share": given["truncated_share"],
        **compute_style([row["response"] for row in rows]),
    }


def _mean_tokens(rows: Sequence[PoolRow]) -> float:
    return sum(row["completion_tokens"] for row in rows) / max(len(rows), 1)

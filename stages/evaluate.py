"""Evaluate: scores of one model on the held-out split and on benchmarks.

Reads    the model of evaluations.<id>.checkpoint, data/questions, the judge data/model/<evaluate.judge>, the benchmark
         files of evaluate.folder (for the tiny world the code that writes them); params: evaluate, evaluations.<id>
Writes   data/evaluate/<id>: one row a question with answer and score, and a folder a benchmark that `ril score` reads;
         reports/evaluate/<id>/{metrics.json,rejects.jsonl}
Run      dvc repro evaluate@ril

All models get the same questions in the same words, greedily. With `shuffled_images` everything is asked once more with
the pictures exchanged among questions of one source: what is still right then was not read off the picture. Benchmarks
go into the same batch. A benchmark that can't be read is named in the metrics and left out; a judge that fails is no
zero. A question that is longer than the model is wrong in the split and missing in a benchmark, with a line in
rejects.jsonl.
"""

import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.benchmarks.answering import make_records, plan_benchmarks
from stages.benchmarks.predictions import BenchmarkRecord, write_benchmark_record
from stages.benchmarks.registry import find_benchmark, register
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores
from stages.benchmarks.speed import SpeedMeter
from stages.benchmarks.verdicts import AskJudge, JudgePrompt
from stages.config.evaluate import Evaluate, Evaluation
from stages.config.sampling import Sampling
from stages.corpora.rows import Question, read_questions
from stages.corpora.scoring import is_correct, standard_error
from stages.engines.start import start_engine
from stages.job.files import write_json, write_shards
from stages.job.job import Job
from stages.job.rejects import write_rejects
from stages.job.seeds import derive_seed
from stages.responses.answers import Generation, fetch_answers, fetch_answers_and_rejects, read_stored_answers
from stages.responses.requested import PromptLike
from stages.responses.store import StoredAnswer
from stages.vlm.checkpoint import open_checkpoint

PREDICTION_SCHEMA = pa.schema(
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
TINY_PREFIX = "tiny_"  # how the names of the tiny profile's benchmarks begin
REFUSED = "refused"  # finish reason of what the model was not asked


def run(job: Job) -> None:
    """Writes predictions and scores of one model."""
    block = job.block(Evaluate)
    questions = read_questions(job.input("data/questions"), block.split)
    shuffled = shuffle_images(questions) if block.shuffled_images else []
    with tempfile.TemporaryDirectory() as world:  # pictures are read while they are asked about
        if any(name.startswith(TINY_PREFIX) for name in block.benchmarks):
            write_tiny_benchmarks(Path(world), questions)
        plan = plan_benchmarks(block, job.input(block.folder), Path(world), job.progress.say)
        every = answer_prompts(job, [*questions, *shuffled, *plan.all_prompts], block)
    (found, seen_otherwise), to_benchmarks = split_answers(every, len(questions), len(shuffled))
    blind: list[bool | None] = [None] * len(questions)
    if shuffled:
        blind = [is_answer_right(answer, q) for answer, q in zip(seen_otherwise, questions, strict=True)]
    rows = [make_prediction(*one) for one in zip(questions, found, blind, strict=True)]
    kept = make_records(
        plan,
        block,
        [make_reply(one[0]) if one else None for one in to_benchmarks],
        make_manifest(job, block),
        make_ask_judge(job, block),
    )
    with job.writing() as folder:
        write_shards(folder, rows, PREDICTION_SCHEMA)
        for name, record in kept.items():
            write_benchmark_record(folder / name, record)
    metrics = {
        **compute_scores(rows),
        "benchmarks": collect_benchmark_scores(kept, block),
        "benchmark_errors": dict(plan.errors),
    }
    job.write_metrics(metrics)
    shown = {"accuracy": metrics["accuracy"], "shuffled": metrics.get("accuracy_shuffled"), **metrics["by_kind"]}
    job.progress.show_table(
        job.block(Evaluation).title, [{key: value for key, value in shown.items() if value is not None}]
    )
    job.progress.show_table("Benchmarks", [make_console_row(numbers) for numbers in metrics["benchmarks"].values()])


def write_tiny_benchmarks(folder: Path, questions: Sequence[Question]) -> None:
    """Registers the tiny profile's benchmarks and writes their files; real runs never get here, nor depend on that
    code.
    """
    from stages.tiny.benchmarks.specs import SPECS
    from stages.tiny.benchmarks.write import write_world

    register(SPECS)
    write_world(folder, questions)


def answer_prompts(job: Job, questions: Sequence[PromptLike], block: Evaluate) -> list[list[StoredAnswer]]:
    """The one greedy answer to each question, none where the model can't take it.

    Raises TooManyRejects when that is more than max_reject_share of them, RuntimeError when answers failed.
    """
    greedy = Sampling(temperature=0.0, max_tokens=block.max_tokens)
    generation = Generation(job.input(job.block(Evaluation).checkpoint), greedy)
    speed = SpeedMeter(job.progress)
    with job.measure_time("generate"):
        found, rejects = fetch_answers_and_rejects(
            replace(job, progress=speed), generation, questions, job.name, max_reject_share=block.max_reject_share
        )
    write_rejects(job.reports / "rejects.jsonl", rejects)
    if failed := [reject for reject in rejects if reject.kind == "failed"]:  # that is no trait of the model
        raise RuntimeError(
            f"{job.name}: {len(failed)} answers failed; run again to ask for these only. {failed[0].reason}"
        )
    if rejects:
        job.progress.say(
            f"{job.name}: the model can't take {len(rejects)} prompts; see {job.reports / 'rejects.jsonl'}"
        )
    if speed.rates:
        write_json(job.reports / "speed" / "timing.json", speed.rates)  # untracked, as all wall times are
    return found


def split_answers(
    every: Sequence[list[StoredAnswer]], questions: int, shuffled: int
) -> tuple[tuple[list[StoredAnswer | None], list[StoredAnswer | None]], Sequence[list[StoredAnswer]]]:
    """The answers to the split and to the split with exchanged pictures; and those to the benchmarks. Any may be
    lacking.
    """
    end = questions + shuffled
    single = [one[0] if one else None for one in every[:end]]
    return (single[:questions], single[questions:]), every[end:]


def is_answer_right(answer: StoredAnswer | None, question: Question) -> bool:
    """Whether it is the reference; no answer never is."""
    return answer is not None and is_correct(answer.text, question.answer)


def make_prediction(question: Question, answer: StoredAnswer | None, correct_shuffled: bool | None) -> dict[str, Any]:
    """A row of PREDICTIONS; without an answer its finish reason is `refused`."""
    return {
        "question_id": question.id,
        "kind": question.kind,
        "response": answer.text if answer else "",
        "reference": question.answer,
        "correct": is_answer_right(answer, question),
        "correct_shuffled": correct_shuffled,
        "finish_reason": answer.finish_reason if answer else REFUSED,
        "completion_tokens": answer.completion_tokens if answer else 0,
        "response_key": answer.key if answer else "",
    }


def make_reply(answer: StoredAnswer) -> BenchmarkReply:
    """A stored answer as a reply to a benchmark."""
    return BenchmarkReply("", answer.text, answer.finish_reason, answer.completion_tokens, answer.key)


def make_ask_judge(job: Job, block: Evaluate) -> AskJudge:
    """Asks the judge through the store. Where it fails, texts are None: those rows have no score, and say so."""

    def ask(prompts: Sequence[JudgePrompt], max_tokens: int) -> list[str | None]:
        greedy = Sampling(temperature=0.0, max_tokens=max_tokens)
        generation = Generation(job.input(f"data/model/{block.judge}"), greedy)
        try:
            with job.measure_time("judge"):
                title = f"{job.name}, judge"
                replies = fetch_answers(job, generation, prompts, title, start_engine, max_reject_share=1.0)
        except RuntimeError as error:  # it went down: what it said before was stored, and counts
            replies = read_stored_answers(job, generation, prompts)
            job.progress.say(f"the judge {block.judge} failed: {error}")
        except OSError as error:
            replies = [[] for _ in prompts]
            job.progress.say(f"the judge {block.judge} can't be asked: {error}")
        if silent := sum(not samples for samples in replies):
            job.progress.say(
                f"{job.name}: {silent} of {len(prompts)} replies have no verdict of {block.judge}, and so no score"
            )
        return [samples[0].text if samples else None for samples in replies]

    return ask


def make_manifest(job: Job, block: Evaluate) -> dict[str, Any]:
    """What a reader of the predictions has to know: whose they are, how they were asked, who judges."""
    model = open_checkpoint(job.input(job.block(Evaluation).checkpoint))
    return {
        "model": model.identity,
        "title": job.block(Evaluation).title,
        "max_tokens": block.max_tokens,
        "judge": block.judge,
    }


def collect_benchmark_scores(kept: Mapping[str, BenchmarkRecord], block: Evaluate) -> dict[str, Any]:
    """The numbers of every benchmark under the first profile, with its source and judge; those of the others in
    `profiles`.
    """
    found = {}
    for name, record in kept.items():
        spec = find_benchmark(name)
        known = [one for one in block.profiles if spec.needs_judge or spec.scorer(one, record.cot) is not None]
        numbers = [
            compute_benchmark_scores(spec, record.samples, record.replies, one, record.cot, record.judge)
            for one in known
        ]
        if numbers:
            others = {one["profile"]: one["score"] for one in numbers[1:]}
            about = {key: record.manifest[key] for key in ("source", "style", "cot", "judge")}
            found[name] = {**numbers[0], **about, "profiles": others}
    return found


def make_console_row(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's row for the console."""
    return {
        key: numbers[key]
        for key in ("title", "profile", "units", "score", "error", "unparsed", "judge_failed", "tokens")
    }


def shuffle_images(questions: Sequence[Question]) -> list[Question]:
    """The questions with pictures of others from the same source; nobody keeps its own where there is more than one."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        by_source[question.source].append(place)
    result = list(questions)
    for source, places in by_source.items():
        order = places[:]
        random.Random(derive_seed("shuffled images", source)).shuffle(order)
        for receiver, giver in zip(order, order[1:] + order[:1], strict=True):  # one cycle: no fixed point
            other = questions[giver]
            result[receiver] = replace(questions[receiver], images=other.images, image_sha256=other.image_sha256)
    return result


def compute_scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its standard error, by kind, with shuffled images; mean tokens; share of answers that were cut."""
    count = len(rows)
    accuracy = sum(row["correct"] for row in rows) / count
    kinds = sorted({row["kind"] for row in rows})
    metrics: dict[str, Any] = {
        "questions": count,
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, count),
        "by_kind": {kind: _mean_of_known([row["correct"] for row in rows if row["kind"] == kind]) for kind in kinds},
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / count,
        "truncated_share": _mean_of_known([row["finish_reason"] == "length" for row in rows]),
        "refused": sum(row["finish_reason"] == REFUSED for row in rows),
    }
    if rows[0]["correct_shuffled"] is not None:
        metrics["accuracy_shuffled"] = _mean_of_known([row["correct_shuffled"] for row in rows])
    return metrics


def _mean_of_known(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)

"""Evaluate: scores one model on the held-out split and on benchmarks.

Reads    the model of evaluations.<id>.checkpoint, data/questions, the judge data/model/<evaluate.judge>, the benchmark
         files of evaluate.folder (in the tiny profile, the code that writes them); params: evaluate, evaluations.<id>
Writes   data/evaluate/<id>: one row per question with answer and score, and one folder per benchmark for `ril score`;
         reports/evaluate/<id>/{metrics.json,rejects.jsonl}
Run      dvc repro evaluate@ril

All models get identical prompts and decode greedily. With `shuffled_images` every question is asked a second time with
images permuted among the questions of one source: answers that stay correct do not depend on the image. Benchmark
prompts run in the same batch. A benchmark that cannot be read is reported in the metrics and skipped. A failed verdict
is missing, not zero. A prompt that exceeds the model's context counts as wrong in the split and as missing in a
benchmark; it is listed in rejects.jsonl.
"""

import random
import sys
import tempfile
from array import array
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
from stages.job.lazy_sequence import LazySequence
from stages.job.rejects import write_rejects
from stages.job.seeds import derive_seed
from stages.responses.answers import Generation, fetch_answers, fetch_converted, read_stored_answers
from stages.responses.requested import PromptLike
from stages.responses.store import StoredAnswer
from stages.vlm.checkpoint import open_verified

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
TINY_PREFIX = "tiny_"  # prefix of the benchmark names of the tiny profile
REFUSED = "refused"  # finish reason of prompts that were rejected before generation


def run(job: Job) -> None:
    """Writes the predictions and scores of one model."""
    block = job.block(Evaluate)
    questions = read_questions(job.input("data/questions"), block.split)
    shuffled: Sequence[Question] = shuffle_images(questions) if block.shuffled_images else []
    with tempfile.TemporaryDirectory() as world:  # images are read during generation
        if any(name.startswith(TINY_PREFIX) for name in block.benchmarks):
            write_tiny_benchmarks(Path(world), questions)
        plan = plan_benchmarks(block, job.input(block.folder), Path(world), job.progress.say)
        every = answer_prompts(job, JoinedPrompts(questions, shuffled, plan.all_prompts), block)
    (found, seen_otherwise), to_benchmarks = split_answers(every, len(questions), len(shuffled))
    blind: list[bool | None] = [None] * len(questions)
    if shuffled:
        blind = [is_answer_right(answer, q) for answer, q in zip(seen_otherwise, questions, strict=True)]
    rows = [make_prediction(*one) for one in zip(questions, found, blind, strict=True)]
    kept = make_records(
        plan,
        block,
        to_benchmarks,
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
    """Registers the tiny profile's benchmarks and writes their files; other profiles do not depend on that code."""
    from stages.tiny.benchmarks.specs import SPECS
    from stages.tiny.benchmarks.write import write_world

    register(SPECS)
    write_world(folder, questions)


def answer_prompts(job: Job, questions: Sequence[PromptLike], block: Evaluate) -> list[BenchmarkReply | None]:
    """Returns one greedy answer per question, None where the prompt was rejected; no tokens are kept.

    Raises TooManyRejects when more than max_reject_share of the prompts are rejected, RuntimeError when answers failed.
    """
    greedy = Sampling(temperature=0.0, max_tokens=block.max_tokens)
    generation = Generation(job.input(job.block(Evaluation).checkpoint), greedy)
    speed = SpeedMeter(job.progress)
    with job.measure_time("generate"):
        found, rejects = fetch_converted(
            replace(job, progress=speed), generation, questions, make_reply, block.max_reject_share
        )
    write_rejects(job.reports / "rejects.jsonl", rejects)
    if failed := [reject for reject in rejects if reject.kind == "failed"]:  # the engine's fault
        raise RuntimeError(
            f"{job.name}: {len(failed)} answers failed; rerun to generate only these. {failed[0].reason}"
        )
    if rejects:
        job.progress.say(f"{job.name}: the model rejects {len(rejects)} prompts; see {job.reports / 'rejects.jsonl'}")
    if speed.rates:
        write_json(job.reports / "speed" / "timing.json", speed.rates)  # untracked, like all wall times
    return found


def split_answers(
    every: Sequence[BenchmarkReply | None], questions: int, shuffled: int
) -> tuple[tuple[Sequence[BenchmarkReply | None], Sequence[BenchmarkReply | None]], Sequence[BenchmarkReply | None]]:
    """Separates the answers of the split, of the split with shuffled images, and of the benchmarks."""
    end = questions + shuffled
    return (every[:questions], every[questions:end]), every[end:]


def is_answer_right(answer: BenchmarkReply | None, question: Question) -> bool:
    """Returns whether the answer matches the reference; False without an answer."""
    return answer is not None and is_correct(answer.text, question.answer)


def make_prediction(question: Question, answer: BenchmarkReply | None, correct_shuffled: bool | None) -> dict[str, Any]:
    """Returns a row of PREDICTION_SCHEMA; without an answer its finish reason is `refused`."""
    return {
        "question_id": question.id,
        "kind": question.kind,
        "response": answer.text if answer else "",
        "reference": question.answer,
        "correct": is_answer_right(answer, question),
        "correct_shuffled": correct_shuffled,
        "finish_reason": answer.finish_reason if answer else REFUSED,
        "completion_tokens": answer.completion_tokens if answer else 0,
        "response_key": answer.response_key if answer else "",
    }


def make_reply(answers: Sequence[StoredAnswer]) -> BenchmarkReply | None:
    """Returns the one answer to a prompt without its tokens; None if it was rejected."""
    if not answers:
        return None
    (answer,) = answers
    return BenchmarkReply("", answer.text, sys.intern(answer.finish_reason), answer.completion_tokens, answer.key)


def make_ask_judge(job: Job, block: Evaluate) -> AskJudge:
    """Returns a function that asks the judge through the store; its texts are None where the judge failed."""

    def ask(prompts: Sequence[JudgePrompt], max_tokens: int) -> list[str | None]:
        greedy = Sampling(temperature=0.0, max_tokens=max_tokens)
        generation = Generation(job.input(f"data/model/{block.judge}"), greedy)
        try:
            with job.measure_time("judge"):
                title = f"{job.name}, judge"
                replies = fetch_answers(job, generation, prompts, title, start_engine, max_reject_share=1.0)
        except RuntimeError as error:  # the engine failed: replies stored before the failure are used
            replies = read_stored_answers(job, generation, prompts)
            job.progress.say(f"the judge {block.judge} failed: {error}")
        except OSError as error:
            replies = [[] for _ in prompts]
            job.progress.say(f"the judge {block.judge} is not available: {error}")
        if silent := sum(not samples for samples in replies):
            job.progress.say(
                f"{job.name}: {silent} of {len(prompts)} replies have no verdict of {block.judge} and are not scored"
            )
        return [samples[0].text if samples else None for samples in replies]

    return ask


def make_manifest(job: Job, block: Evaluate) -> dict[str, Any]:
    """Returns the metadata of the predictions: model, prompts and sampling, judge."""
    model = open_verified(job.input(job.block(Evaluation).checkpoint), job.store)
    return {
        "model": model.identity,
        "title": job.block(Evaluation).title,
        "max_tokens": block.max_tokens,
        "judge": block.judge,
    }


def collect_benchmark_scores(kept: Mapping[str, BenchmarkRecord], block: Evaluate) -> dict[str, Any]:
    """Returns each benchmark's scores under the first profile, with source and judge; other profiles in `profiles`."""
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
    """Returns a benchmark's row for the console."""
    return {
        key: numbers[key]
        for key in ("title", "profile", "units", "score", "error", "unparsed", "judge_failed", "tokens")
    }


class JoinedPrompts(LazySequence[PromptLike]):
    """Several sequences of prompts in a row, which may be read from files on access."""

    def __init__(self, *parts: Sequence[PromptLike]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def read_item(self, place: int) -> PromptLike:
        part = 0
        while place >= len(self._parts[part]):
            place -= len(self._parts[part])
            part += 1
        return self._parts[part][place]


class ShuffledImages(LazySequence[Question]):
    """Questions with the images of others, read from files on access."""

    def __init__(self, questions: Sequence[Question], givers: Sequence[int]) -> None:
        """Question number i gets the images of question number `givers[i]`."""
        self._questions, self._givers = questions, givers

    def __len__(self) -> int:
        return len(self._questions)

    def read_item(self, place: int) -> Question:
        giver = self._questions[self._givers[place]]
        return replace(self._questions[place], images=giver.images, image_sha256=giver.image_sha256)


def shuffle_images(questions: Sequence[Question]) -> ShuffledImages:
    """Returns the questions with images permuted within each source; a question keeps its image only if it is alone."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        by_source[question.source].append(place)
    givers = array("q", range(len(questions)))
    for source, places in by_source.items():
        order = places[:]
        random.Random(derive_seed("shuffled images", source)).shuffle(order)
        for receiver, giver in zip(order, order[1:] + order[:1], strict=True):  # one cycle: no fixed point
            givers[receiver] = giver
    return ShuffledImages(questions, givers)


def compute_scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns accuracy with standard error, by kind and with shuffled images, mean tokens and truncated share."""
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

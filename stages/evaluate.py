"""Evaluate: scores one model on the held-out split and on benchmarks.

Reads    the model of evaluations.<id>.checkpoint, data/questions, the judge data/model/<evaluate.judge>, the benchmark
         files of evaluate.folder (in the tiny profile, the code that writes them); params: evaluate, evaluations.<id>
Writes   data/evaluate/<id>: one row per question with answer and score, and one folder per benchmark for `ril score`;
         reports/evaluate/<id>/{metrics.json,rejects.jsonl}
Run      dvc repro evaluate@ril

All models get identical prompts and decode greedily. Answers are scored by the rule for the kind of their reference,
and with `scoring: rules_and_judge` by the judge where no rule is sure (docs/benchmarks.md). With `shuffled_images`
questions are asked a second time with images permuted among the questions of one source that have as many images:
answers that stay correct do not depend on the image. Benchmark prompts run in the same batch. A benchmark that cannot
be read is reported in the metrics and skipped. A failed verdict is missing, not zero. A prompt that exceeds the model's
context counts as wrong in the split and as missing in a benchmark; it is listed in rejects.jsonl.
"""

import random
import sys
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.benchmarks.answering import make_records, plan_benchmarks
from stages.benchmarks.predictions import BenchmarkRecord, write_benchmark_record
from stages.benchmarks.registry import find_benchmark, register
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores
from stages.benchmarks.speed import SpeedMeter
from stages.benchmarks.split_scores import (
    UNSURE,
    AnswerScore,
    count_deciders,
    describe_deciders,
    make_row_fields,
    score_answers,
)
from stages.benchmarks.verdicts import AskJudge, JudgePrompt
from stages.config.evaluate import Evaluate, Evaluation
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.corpora.rows import Question, read_questions
from stages.corpora.scoring import standard_error
from stages.engines.start import start_engine
from stages.job.files import write_json, write_shards
from stages.job.job import Job
from stages.job.lazy_sequence import LazySequence
from stages.job.rejects import write_rejects
from stages.job.seeds import derive_seed
from stages.judging.judge import JudgeItem, JudgeVerdict, judge_items, make_fit_check, make_judge_sampling
from stages.judging.rules import NO_REPLY
from stages.responses.answers import Generation, fetch_answers, fetch_converted, read_stored_answers
from stages.responses.requested import PromptLike
from stages.responses.store import StoredAnswer
from stages.vlm.checkpoint import open_verified
from stages.vlm.reader import load_chat

PREDICTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("response", pa.string()),
        ("reference", pa.string()),
        ("correct", pa.bool_()),  # null without a verdict
        ("score", pa.float64()),  # 0 to 1
        ("state", pa.string()),  # ok, or failed: the judge gave no verdict
        ("decided_by", pa.string()),  # "rule: number", "judge" ... (stages/benchmarks/split_scores.py)
        ("judge_key", pa.string()),  # of the judge's text in the response store
        ("correct_shuffled", pa.bool_()),  # null if the question was not asked with other images
        ("score_shuffled", pa.float64()),
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
    shuffled = shuffle_images(questions) if block.shuffled_images else ShuffledImages(questions, [], [])
    with tempfile.TemporaryDirectory() as world:  # images are read during generation
        if any(name.startswith(TINY_PREFIX) for name in block.benchmarks):
            write_tiny_benchmarks(Path(world), questions)
        plan = plan_benchmarks(block, job.input(block.folder), Path(world), job.progress.say)
        every = answer_prompts(job, JoinedPrompts(questions, shuffled, plan.all_prompts), block)
    if left_out := block.shuffled_images and len(questions) - len(shuffled):
        job.progress.say(
            f"{job.name}: {left_out} of {len(questions)} questions are not asked with other images: they have none, or "
            "no other question of their source has as many"
        )
    (found, seen_otherwise), to_benchmarks = split_answers(every, len(questions), len(shuffled))
    scores = score_split(
        job, block, chain(zip(questions, found, strict=True), zip(shuffled, seen_otherwise, strict=True))
    )
    blind: list[AnswerScore | None] = [None] * len(questions)
    for receiver, score in zip(shuffled.receivers, scores[len(questions) :], strict=True):
        blind[receiver] = score
    rows = [make_prediction(*one) for one in zip(questions, found, scores[: len(questions)], blind, strict=True)]
    announce_deciders(job, block, rows)
    metrics = compute_scores(rows)
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
    metrics |= {
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


def score_split(
    job: Job, block: Evaluate, answered: Iterable[tuple[Question, BenchmarkReply | None]]
) -> list[AnswerScore]:
    """Returns the score of each answer; the judge, if it is to be asked, gets what no rule decides in one batch."""
    judge = partial(ask_for_verdicts, job, block) if block.scoring == "rules_and_judge" else None
    return score_answers(((question, reply.text if reply else None) for question, reply in answered), judge)


def announce_deciders(job: Job, block: Evaluate, rows: Sequence[Mapping[str, Any]]) -> None:
    """Says which rules, or the judge, decided which share of the answers, and what could be asked of a judge."""
    shares = count_deciders([row["decided_by"] for row in rows])
    job.progress.say(f"{job.name}: decided by {describe_deciders(shares)}")
    unsure = sum(row["decided_by"].endswith(UNSURE) for row in rows)
    if unsure and block.scoring == "rules":
        job.progress.say(
            f"{job.name}: no rule is sure of {unsure} of {len(rows)} answers, and the best guess counts; "
            "evaluate.scoring: rules_and_judge asks a judge"
        )


def ask_for_verdicts(job: Job, block: Evaluate, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
    """Returns the judge's verdicts through the response store; failed ones where it gave none or cannot be loaded."""
    form, longest = block.judge_form, block.judge_max_tokens
    sampling = make_judge_sampling(Verdict(model=block.judge, form=form, max_tokens=longest))
    try:
        opened = open_verified(job.input(f"data/model/{block.judge}"), job.store)
        fits = make_fit_check(load_chat(opened), opened.context_tokens, sampling.max_tokens)
    except OSError as error:
        job.progress.say(f"the judge {block.judge} is not available: {error}")
        return [JudgeVerdict(None, NO_REPLY, None) for _ in items]
    return judge_items(items, lambda prompts: fetch_from_judge(job, block, prompts, sampling), fits, form)


def make_prediction(
    question: Question, answer: BenchmarkReply | None, score: AnswerScore, blind: AnswerScore | None
) -> dict[str, Any]:
    """Returns a row of PREDICTION_SCHEMA; without an answer its finish reason is `refused`.

    `blind` is the score of the answer with another image, None if there is none.
    """
    return {
        "question_id": question.id,
        "kind": question.kind,
        "response": answer.text if answer else "",
        "reference": question.answer,
        **make_row_fields(score),
        "correct_shuffled": blind.correct if blind else None,
        "score_shuffled": blind.score if blind else None,
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

    def ask(prompts: Sequence[JudgePrompt], sampling: Sampling) -> list[str | None]:
        return [reply.text if reply else None for reply in fetch_from_judge(job, block, prompts, sampling)]

    return ask


def fetch_from_judge(
    job: Job, block: Evaluate, prompts: Sequence[PromptLike], sampling: Sampling
) -> list[StoredAnswer | None]:
    """Returns the judge's replies through the response store, None where the judge failed, and says how many."""
    generation = Generation(job.input(f"data/model/{block.judge}"), sampling)
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
    return [samples[0] if samples else None for samples in replies]


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
    """Some questions with the images of others, read from files on access."""

    def __init__(self, questions: Sequence[Question], receivers: Sequence[int], givers: Sequence[int]) -> None:
        """Question number `receivers[i]` gets the images of question number `givers[i]`."""
        self._questions, self._givers = questions, givers
        self.receivers = receivers

    def __len__(self) -> int:
        return len(self.receivers)

    def read_item(self, place: int) -> Question:
        giver = self._questions[self._givers[place]]
        receiver = self._questions[self.receivers[place]]
        return replace(receiver, images=giver.images, image_sha256=giver.image_sha256)


def shuffle_images(questions: Sequence[Question]) -> ShuffledImages:
    """Returns the questions with images permuted among those of one source with equal numbers of images.

    None keeps its own images. A question without images, or without another one to exchange with, is left out.
    """
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        alike[question.source, len(question.image_sha256)].append(place)
    givers = array("q", [-1] * len(questions))
    for (source, images), places in alike.items():
        if images == 0 or len(places) == 1:
            continue
        order = places[:]
        named = (source,) if images == 1 else (source, images)
        random.Random(derive_seed("shuffled images", *named)).shuffle(order)
        for receiver, giver in zip(order, order[1:] + order[:1], strict=True):  # one cycle: no fixed point
            givers[receiver] = giver
    receivers = array("q", [place for place, giver in enumerate(givers) if giver >= 0])
    return ShuffledImages(questions, receivers, array("q", [giver for giver in givers if giver >= 0]))


def compute_scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns accuracy with standard error, by kind and with shuffled images, who decided, tokens, truncated share.

    Means are over the rows with a score; `judge_failed` counts the others, and `lowest` counts them as wrong. Raises
    RuntimeError if no row has a score.
    """
    count = len(rows)
    known = [row["score"] for row in rows if row["score"] is not None]
    if not known:
        raise RuntimeError(
            f"none of {count} answers has a score: the judge gave no verdict. The answers stay stored; correct the "
            "judge (evaluate.judge) or set evaluate.scoring: rules"
        )
    accuracy, error = _compute_mean(known)
    kinds = sorted({row["kind"] for row in rows})
    by_kind = {kind: [row["score"] for row in rows if row["kind"] == kind] for kind in kinds}
    scored = {kind: [score for score in scores if score is not None] for kind, scores in by_kind.items()}
    metrics: dict[str, Any] = {
        "questions": count,
        "accuracy": accuracy,
        "standard_error": error,
        "by_kind": {kind: _compute_mean(scores)[0] if scores else 0.0 for kind, scores in scored.items()},
        "decided_by": count_deciders([row["decided_by"] for row in rows]),
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / count,
        "truncated_share": _compute_mean([row["finish_reason"] == "length" for row in rows])[0],
        "refused": sum(row["finish_reason"] == REFUSED for row in rows),
    }
    if len(known) < count:
        metrics |= {"judge_failed": count - len(known), "lowest": sum(known) / count}
    shuffled = [row["score_shuffled"] for row in rows if row["score_shuffled"] is not None]
    if shuffled:
        metrics["accuracy_shuffled"] = _compute_mean(shuffled)[0]
        if len(shuffled) < count:
            metrics["not_shuffled"] = count - len(shuffled)
    return metrics


def _compute_mean(scores: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    mean = sum(scores) / len(scores)
    if all(score in (0, 1) for score in scores):
        return mean, standard_error(mean, len(scores))
    spread = sum((score - mean) ** 2 for score in scores) / len(scores)
    return mean, (spread / len(scores)) ** 0.5

"""Stage `evaluate`: exchanged pictures, scores; the whole stage runs in the smoke pipeline."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.jobs import open_job
from stages import evaluate
from stages.benchmarks.scores import BenchmarkReply
from stages.benchmarks.split_scores import AnswerScore, score_answers
from stages.benchmarks.verdicts import JudgePrompt
from stages.config.evaluate import Evaluate
from stages.config.params import load_params, validate_params
from stages.config.sampling import Sampling
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QUESTION_SCHEMA, Question, make_canonical_row
from stages.engines.engine import Answer, EngineError, Request
from stages.evaluate import (
    JoinedPrompts,
    compute_scores,
    make_prediction,
    make_reply,
    shuffle_images,
    split_answers,
)
from stages.job.files import read_json, write_shards
from stages.job.job import Job
from stages.judging.judge import INSTRUCTION, PLAIN_INSTRUCTION, PLAIN_PATTERN
from stages.responses.store import StoredAnswer
from stages.tiny.world.exercises import draw_example
from stages.vlm.checkpoint import Checkpoint


def question(number: int, source: str) -> Question:
    image = bytes([number])
    return Question(
        f"q{number}", (image,), (str(number),), ({"role": "user", "content": "<image>"},), None, "1", source, "k"
    )


def test_nobody_keeps_its_picture_and_sources_do_not_mix() -> None:
    asked = [question(n, "digits" if n % 3 else "bars") for n in range(20)]
    found = shuffle_images(asked)
    assert [q.id for q in found] == [q.id for q in asked]
    assert all(new.images != old.images for new, old in zip(found, asked, strict=True))
    by_image = {q.images: q.source for q in asked}
    assert all(by_image[q.images] == q.source for q in found)
    assert sorted(q.images for q in found) == sorted(q.images for q in asked)
    assert [*shuffle_images(asked)] == [*found]
    joined = JoinedPrompts(asked[:3], found, [])
    assert [*joined] == [*asked[:3], *found]
    assert joined[2:5] == [asked[2], found[0], found[1]]
    with pytest.raises(IndexError):
        joined[23]


def test_scores_by_kind_and_with_shuffled_images() -> None:
    rows = [
        {
            "kind": kind,
            "score": float(right),
            "score_shuffled": float(blind),
            "decided_by": "rule: number",
            "finish_reason": reason,
            "completion_tokens": tokens,
        }
        for kind, right, blind, reason, tokens in (
            ("a", True, False, "stop", 10),
            ("a", False, False, "length", 30),
            ("b", True, True, "stop", 20),
            ("b", True, False, "stop", 20),
        )
    ]
    found = compute_scores(rows)
    assert found["accuracy"] == 0.75
    assert found["by_kind"] == {"a": 0.5, "b": 1.0}
    assert found["accuracy_shuffled"] == 0.25
    assert found["decided_by"] == {"rule: number": 1.0}
    assert "judge_failed" not in found
    assert "not_shuffled" not in found
    assert found["truncated_share"] == 0.25
    assert found["mean_tokens"] == 20
    assert round(found["standard_error"], 4) == 0.2165


def question_with_images(number: int, count: int, source: str = "s") -> Question:
    images = tuple(bytes([number, place]) for place in range(count))
    names = tuple(str(image) for image in images)
    return Question(f"q{number}", images, names, ({"role": "user", "content": "x"},), None, "1", source, "k")


def test_images_are_exchanged_among_questions_with_as_many() -> None:
    """Questions without images, and one that has nobody to exchange with, are left out."""
    asked = [question_with_images(number, count) for number, count in enumerate((1, 2, 0, 1, 2, 3, 1, 0, 2))]
    asked.append(question_with_images(9, 1, "alone in its source"))
    found = shuffle_images(asked)
    assert [one.id for one in found] == ["q0", "q1", "q3", "q4", "q6", "q8"]
    before = {one.id: one for one in asked}
    assert all(len(one.images) == len(before[one.id].images) for one in found)
    assert all(one.images != before[one.id].images for one in found)
    assert list(found.receivers) == [0, 1, 3, 4, 6, 8]


def test_a_row_without_a_verdict_is_left_out_of_the_mean_and_counted() -> None:
    rows = [
        {
            "kind": "a",
            "score": score,
            "score_shuffled": blind,
            "decided_by": by,
            "finish_reason": "stop",
            "completion_tokens": 1,
        }
        for score, blind, by in (
            (1.0, None, "judge"),
            (None, 0.5, "no verdict"),
            (0.6, None, "rule: short text"),
            (0.0, 1.0, "judge"),
        )
    ]
    found = compute_scores(rows)
    assert found["accuracy"] == pytest.approx(1.6 / 3)
    assert (found["judge_failed"], found["lowest"], found["not_shuffled"]) == (1, 0.4, 2)
    assert found["accuracy_shuffled"] == 0.75
    assert found["standard_error"] == pytest.approx((0.1688888 / 3) ** 0.5, rel=1e-3)
    assert found["decided_by"] == {"judge": 0.5, "no verdict": 0.25, "rule: short text": 0.25}
    with pytest.raises(RuntimeError, match=r"none of 1 answers has a score.*evaluate\.judge"):
        compute_scores(rows[1:2])
    assert AnswerScore(None, "no verdict").correct is None


def test_answers_are_told_apart_by_what_was_asked() -> None:
    """The split's, those to shuffled images, the benchmarks'; a rejected prompt is wrong in the split."""

    def said(text: str) -> BenchmarkReply | None:
        return make_reply([StoredAnswer(f"key {text}", "", 0, "", text, (1, 2), "length", 9, 4, "", "")])

    asked = [replace(question(number, "digits"), answer=str(number)) for number in range(3)]
    every = [said("0"), make_reply([]), said("7"), said("4"), said("1"), None, said("b0"), None]
    (found, shuffled), benchmarks = split_answers(every, 3, 3)
    assert [answer and answer.text for answer in found] == ["0", None, "7"]
    assert [answer and answer.text for answer in shuffled] == ["4", "1", None]
    assert benchmarks == [said("b0"), None]
    scores = score_answers([(one, answer and answer.text) for one, answer in zip(asked, found, strict=True)], None)
    rows = [make_prediction(*one, None) for one in zip(asked, found, scores, strict=True)]
    assert [(row["question_id"], row["response"], row["reference"], row["correct"]) for row in rows] == [
        ("q0", "0", "0", True),
        ("q1", "", "1", False),
        ("q2", "7", "2", False),
    ]
    assert [row["finish_reason"] for row in rows] == ["length", "refused", "length"]
    assert [(row["completion_tokens"], row["response_key"]) for row in rows] == [(4, "key 0"), (0, ""), (4, "key 7")]


def judge_job(root: Path, folder: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("RIL_STORE", str(folder / "store"))
    shutil.copytree(checkpoint.folder, folder / "data/model/judge")
    return open_job("evaluate", "base", folder, load_params(root / "params.yaml"))


class Judge:
    """An engine that says 1.0, fails at one prompt, and goes down after so many answers."""

    name, version, chat = "judge", "1", None

    def __init__(self, checkpoint: Checkpoint, fails_at: int, lives: int) -> None:
        self.checkpoint, self.fails_at, self.lives = checkpoint, fails_at, lives

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for index, _ in enumerate(requests):
            if index == self.lives:
                raise EngineError("the server is gone")
            reason = "no reply within 60 s" if index == self.fails_at else "stop"
            yield index, [Answer(0, "1.0", (), reason, 9, 3)]

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("fails_at", "lives", "silent"), [(1, 9, {1}), (9, 2, {2, 3}), (9, 0, {0, 1, 2, 3}), (9, 9, set())]
)
def test_what_a_failing_judge_did_say_counts(
    fails_at: int,
    lives: int,
    silent: set[int],
    root: Path,
    tmp_path: Path,
    tiny: Callable[[str], Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = judge_job(root, tmp_path, tiny("qwen2_5"), monkeypatch)
    monkeypatch.setattr(evaluate, "start_engine", lambda checkpoint, *_: Judge(checkpoint, fails_at, lives))
    prompts = [JudgePrompt(f"mmvet/{n}", ({"role": "user", "content": f"{n}?"},)) for n in range(4)]
    said = evaluate.make_ask_judge(job, job.block(Evaluate))(prompts, Sampling(temperature=0.0, max_tokens=8))
    assert [place for place, text in enumerate(said) if text is None] == sorted(silent)
    assert {text for text in said if text is not None} <= {"1.0"}
    assert (f"{len(silent)} of 4 replies have no verdict of judge" in capsys.readouterr().err) == bool(silent)


class VerdictJudge:
    """An engine that finds every answer right, in the form that it is asked for, and fails at texts with "mumble"."""

    name, version, chat = "judge", "1", None

    def __init__(self, checkpoint: Checkpoint, asked: list[Request]) -> None:
        self.checkpoint, self.asked = checkpoint, asked

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for index, request in enumerate(requests):
            self.asked.append(request)
            told = request.messages[-1]["content"]
            asked = (request.sampling.pattern, told.endswith(INSTRUCTION), told.endswith(PLAIN_INSTRUCTION))
            texts = {(PLAIN_PATTERN, False, True): "Yes", (None, True, False): "<answer>1</answer>"}
            text = texts.get(asked, "asked in one form, held to another")
            yield index, [Answer(0, text, (), "no reply within 60 s" if "mumble" in told else "stop", 9, 3)]

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("form", ["tag", "plain"])
def test_verdicts_on_free_text_are_cached_and_a_silent_judge_invents_nothing(
    form: str,
    root: Path,
    tmp_path: Path,
    tiny: Callable[[str], Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second evaluation asks only for the verdict that is missing; numbers never reach the judge."""
    asked: list[Request] = []
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    shutil.copytree(tiny("qwen2_5").folder, tmp_path / "data/model/judge")
    changes = {"evaluate": {"scoring": "rules_and_judge", "judge_max_tokens": 16, "judge_form": form}}
    job = open_job(
        "evaluate", "base", tmp_path, validate_params(merge_params(read_yaml(root / "params.yaml"), changes))
    )
    monkeypatch.setattr(evaluate, "start_engine", lambda checkpoint, *_: VerdictJudge(checkpoint, asked))
    said = (("7", "7"), ("a rainy night", "it rained"), ("a rainy night", "mumble"), ("a rainy night", "fog"))
    answered = [
        (
            replace(question(number, "s"), answer=reference, messages=({"role": "user", "content": "Why?"},)),
            BenchmarkReply("", text),
        )
        for number, (reference, text) in enumerate(said)
    ]
    block = job.block(Evaluate)
    for asked_again in (3, 1):
        asked.clear()
        scores = evaluate.score_split(job, block, answered)
        assert len(asked) == asked_again
        assert [one.score for one in scores] == [1.0, 1.0, None, 1.0]
        assert [one.decided_by for one in scores] == ["rule: number", "judge", "no verdict", "judge"]
        assert [bool(one.judge_key) for one in scores] == [False, True, False, True]
    rows = [make_prediction(*pair, score, None) for pair, score in zip(answered, scores, strict=True)]
    assert [row["state"] for row in rows] == ["ok", "ok", "failed", "ok"]
    evaluate.announce_deciders(job, block, rows)
    shown = " ".join(capsys.readouterr().err.split())
    assert "decided by judge 50%, no verdict 25%, rule: number 25%" in shown
    assert "1 of 3 replies have no verdict of judge" in shown
    shutil.rmtree(tmp_path / "data/model/judge")
    assert [one.score for one in evaluate.score_split(job, block, answered)] == [1.0, None, None, None]


@pytest.mark.slow
def test_benchmarks_are_answered_with_the_split_and_scored_again_without_a_model(
    root: Path, tmp_path: Path, tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    for family, place in (("qwen2_5_vl", "student"), ("qwen2_5", "judge")):
        shutil.copytree(tiny(family).folder, tmp_path / "data/model" / place)
    rows = []
    for index in range(8):
        drawn = draw_example(0, "test", index, ("sum", "total"), {"steps": 1.0})
        messages = [{"role": "user", "content": f"{drawn.exercise.question}\n<image>"}]
        rows.append(
            make_canonical_row(f"test-{index}", [drawn.picture.png], messages, drawn.exercise.answer, "digits", "sum")
        )
    long = [{"role": "user", "content": "<image>" + "word " * 2000}]  # more than the model's context
    rows.append(
        make_canonical_row(
            "long", [draw_example(0, "test", 8, ("sum",), {"steps": 1.0}).picture.png], long, "1", "digits", "sum"
        )
    )
    rows.append(make_canonical_row("text", [], [{"role": "user", "content": "What is 1 + 1?"}], "2", "text", "sum"))
    write_shards(tmp_path / "data/questions/test", rows, QUESTION_SCHEMA)
    shutil.copytree(
        root / "stages/tiny/benchmarks",
        tmp_path / "stages/tiny/benchmarks",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    values = merge_params(
        read_yaml(root / "params.yaml"),
        {"evaluate": {"max_tokens": 12, "shuffled_images": False, "max_reject_share": 0.2}},
    )
    job = open_job("evaluate", "base", tmp_path, validate_params(values))
    evaluate.run(job)

    metrics = read_json(job.reports / "metrics.json")
    assert metrics["benchmark_errors"] == {}
    assert (metrics["questions"], metrics["refused"]) == (10, 1)
    lines = [json.loads(line) for line in (job.reports / "rejects.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["long", "tiny_choice/long"]
    assert {line["kind"] for line in lines} == {"refused"}
    assert list(metrics["benchmarks"]) == ["tiny_choice", "tiny_judged", "tiny_number", "tiny_open"]
    assert [numbers["units"] for numbers in metrics["benchmarks"].values()] == [3, 2, 2, 2]
    assert round(metrics["benchmarks"]["tiny_choice"]["missing"]) == 33
    judged = metrics["benchmarks"]["tiny_judged"]
    assert judged["judge_failed"] == 100  # a judge with random weights writes no verdict, and that is no zero
    assert judged["score"] is None
    assert not judged["complete"]
    assert metrics["benchmarks"]["tiny_number"]["tokens"] > 0

    files = {path: path.read_bytes() for path in sorted(job.out.rglob("*")) if path.is_file()}
    segments = sorted((tmp_path / "store").rglob("*.parquet"))
    shutil.rmtree(job.out)
    evaluate.run(open_job("evaluate", "base", tmp_path, validate_params(values)))
    assert {path: path.read_bytes() for path in sorted(job.out.rglob("*")) if path.is_file()} == files
    assert sorted((tmp_path / "store").rglob("*.parquet")) == segments  # nothing was asked again

    result = CliRunner().invoke(app, ["score", str(job.out), "--out", str(tmp_path / "scores.json")])
    assert result.exit_code == 1  # the judged one is incomplete
    again = read_json(tmp_path / "scores.json")["profiles"]["ours"]
    for name, numbers in metrics["benchmarks"].items():
        assert again[name]["score"] == numbers["score"]
        assert again[name]["by"] == numbers["by"]

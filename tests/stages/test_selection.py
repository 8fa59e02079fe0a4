"""Stage selection with a scripted engine: what is scored, paid once, ranked, dropped and written."""

import io
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.jobs import open_job
from stages import selection
from stages.config.params import validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora.kept_questions import StaleSelection, open_kept_questions
from stages.corpora.rows import IMITATION_SPLITS, QUESTION_SCHEMA, QuestionFolder, find_questions, make_canonical_row
from stages.corpora.source import UnusableData
from stages.engines.engine import Answer, Outcome, Request
from stages.job.bounded import UnusableFile
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import Job
from stages.job.rejects import TooManyRejects
from stages.responses import window
from stages.responses.score_text import format_log_probs, parse_log_probs
from stages.responses.sets import find_faults, find_sets
from stages.selection import SCORES, pick_best
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import Reader, load_reader

COUNT = 12
LOG_PROBS = {  # of each token of the reference, by model and number of the question
    "qwen2_5_vl": [-0.1 * ((7 * number) % COUNT) for number in range(COUNT)],
    "student": [-0.3] * COUNT,
}


def number_of(request: Request) -> int:
    return int(request.name.split("-")[-1])


class Scripted:
    """An engine that scores given answers from LOG_PROBS; all instances share what was asked and when to die."""

    name, version = "scripted", "1"
    asked: list[tuple[str, str]]  # model and question
    dies_at: int
    refuses: set[str]
    broken: bool

    def __init__(self, checkpoint: Checkpoint, *_: Any) -> None:
        self.checkpoint, self.chat = checkpoint, load_reader(checkpoint).chat

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        model = self.checkpoint.folder.name
        for index, request in enumerate(requests):
            if len(Scripted.asked) == Scripted.dies_at:
                raise KeyboardInterrupt
            Scripted.asked.append((model, request.name))
            if request.name in Scripted.refuses:
                yield index, f"question {request.name}: it is too long"
                continue
            ids = tuple(self.chat.encode_response(request.given or ""))
            value = LOG_PROBS[model][number_of(request)]
            reason = "a log probability is not finite" if Scripted.broken else "stop"
            yield index, [Answer(0, request.given or "", ids, reason, 20, len(ids), (value,) * len(ids))]

    def close(self) -> None:
        pass


@pytest.fixture
def job_of(
    root: Path, tmp_path: Path, tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """Makes jobs in a project with COUNT questions in each split, a teacher and a student."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("stages.engines.start.VllmEngine", Scripted)
    monkeypatch.setattr(window, "SEGMENT_ANSWERS", 4)
    Scripted.asked, Scripted.dies_at, Scripted.refuses, Scripted.broken = [], -1, set(), False
    for name in LOG_PROBS:
        shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "data/model" / name)
        card = tmp_path / "data/model" / name / "generation_config.json"
        card.write_text(card.read_text() + " " * len(name))  # other files: another model
        write_card(tmp_path / "data/model" / name, "qwen2_5_vl", "fp32", 256)
    for split in ("imitation", "warm_start"):
        rows = []
        for number in range(COUNT):
            buffer = io.BytesIO()
            Image.new("RGB", (84, 84), (20 * number, 0, 0)).save(buffer, "PNG")
            message = {"role": "user", "content": f"<image>{split}: what is the sum of the digits {number}?"}
            target = [{"role": "assistant", "content": "a worked solution"}] if split == "warm_start" else []
            kind, answer = ("sum", "rises")[number % 3 == 0], str(10 + number)
            name = f"{split}-{number}"
            rows.append(make_canonical_row(name, [buffer.getvalue()], [message, *target], answer, "test", kind))
        write_shards(tmp_path / "data/questions" / split, rows, QUESTION_SCHEMA)

    def make(**block: Any) -> Job:
        values = merge_params(read_yaml(root / "params.yaml"), {"selection": block})
        return open_job("selection", None, tmp_path, validate_params(values))

    return make


def load_reader_of(job: Job) -> Reader:
    return load_reader(open_checkpoint(job.root / "data/model/student"))


def read_files(job: Job) -> dict[str, bytes]:
    folders = [job.out / "kept", job.out / "scores", job.reports]
    return {str(file.relative_to(job.root)): file.read_bytes() for folder in folders for file in folder.iterdir()}


def read_kept(job: Job) -> list[int]:
    return [int(row["id"].split("-")[-1]) for row in read_shards(job.out / "kept").to_pylist()]


def rank(count: int, places: Sequence[int] = range(COUNT)) -> list[int]:
    """The `count` questions that the teacher finds likeliest: the student finds all equally likely."""
    return sorted(sorted(places, key=lambda place: -LOG_PROBS["qwen2_5_vl"][place])[:count])


def test_by_default_all_questions_are_kept_and_no_model_is_opened(
    job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of()
    monkeypatch.setattr(selection, "open_verified", None)
    selection.run(job)
    assert read_shards(job.out / "kept").to_pylist() == [
        {"split": "imitation", "id": f"imitation-{number}"} for number in range(COUNT)
    ]
    assert read_shards(job.out / "scores").schema == SCORES
    assert read_shards(job.out / "scores").num_rows == 0
    metrics = read_json(job.reports / "metrics.json")
    assert (metrics["candidates"], metrics["kept"], metrics["dropped"], metrics["scores"]) == (COUNT, COUNT, {}, None)
    kept = open_kept_questions(job.root / "data/questions", job.out / "kept")
    every = QuestionFolder(job.root / "data/questions", "imitation")
    assert list(kept) == list(every)
    assert list(kept.iter_key_parts()) == list(every.iter_key_parts())
    assert not Scripted.asked


def test_the_questions_with_the_highest_scores_are_kept(job_of: Callable[..., Job]) -> None:
    job = job_of(top=5)
    selection.run(job)
    assert read_kept(job) == rank(5)
    tokens = len(load_reader_of(job).chat.encode_response("10"))
    rows = read_shards(job.out / "scores").to_pylist()
    for number, row in enumerate(rows):
        teacher, student = (tokens * LOG_PROBS[name][number] for name in LOG_PROBS)
        assert row["id"] == f"imitation-{number}"
        assert row["reference_tokens"] == tokens
        assert row["prompt_tokens"] > 9
        assert row["teacher_log_prob"] == pytest.approx(teacher, abs=1e-4)
        assert row["student_log_prob"] == pytest.approx(student, abs=1e-4)
        assert row["score"] == pytest.approx(teacher - student, abs=1e-3)
        assert row["dropped"] == (None if number in rank(5) else "low score")
    metrics = read_json(job.reports / "metrics.json")
    scores = sorted(row["score"] for row in rows)
    assert metrics["dropped"] == {"low score": 7}
    assert metrics["scores"]["scored"] == COUNT
    assert metrics["scores"]["lowest_kept"] == scores[-5]
    assert metrics["scores"]["quantiles"]["0.50"] == pytest.approx((scores[5] + scores[6]) / 2, abs=1e-3)
    assert metrics["scores"]["positive_share"] == pytest.approx(sum(one > 0 for one in scores) / COUNT, abs=1e-4)
    assert metrics["kinds"]["rises"]["kept"] == sum(number % 3 == 0 for number in rank(5))
    assert [one.id for one in open_kept_questions(job.root / "data/questions", job.out / "kept")] == [
        f"imitation-{number}" for number in rank(5)
    ]


def test_nothing_is_scored_twice(job_of: Callable[..., Job]) -> None:
    selection.run(job_of(top=5))
    assert sorted(name for model, name in Scripted.asked if model == "student") == sorted(
        f"imitation-{number}" for number in range(COUNT)
    )
    before = len(Scripted.asked)
    selection.run(job_of(top=3))
    assert len(Scripted.asked) == before
    job = job_of(top=4, per="token", within="kind")
    selection.run(job)
    assert len(Scripted.asked) == before
    assert not [fault for one in find_sets(job.store) for fault in find_faults(one) if not isinstance(fault, int)]


def test_a_killed_selection_goes_on_and_writes_the_same_bytes(job_of: Callable[..., Job]) -> None:
    job = job_of(top=5)
    selection.run(job)
    expected, asked = read_files(job), list(Scripted.asked)
    assert len(asked) == 2 * COUNT
    for dies_at in range(0, 2 * COUNT, 5):
        for folder in (job.out, job.reports, job.store):
            shutil.rmtree(folder, ignore_errors=True)
        Scripted.asked, Scripted.dies_at = [], dies_at
        with pytest.raises(KeyboardInterrupt):
            selection.run(job_of(top=5))
        assert not job.out.exists()
        Scripted.dies_at = -1
        selection.run(job_of(top=5))
        assert Scripted.asked == asked  # what was answered before is stored
        assert read_files(job) == expected


def test_the_order_and_grouping_of_questions_changes_no_choice(
    job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    selection.run(job_of(top=5))
    expected = set(read_kept(job_of()))
    folder = job_of().root / "data/questions/imitation"
    rows = read_shards(folder).to_pylist()
    random.Random(1).shuffle(rows)
    write_shards(folder, rows, QUESTION_SCHEMA)
    shutil.rmtree(job_of().store)
    monkeypatch.setattr(window, "SEGMENT_ANSWERS", 5)
    selection.run(job_of(top=5))
    assert set(read_kept(job_of())) == expected


def test_each_kind_keeps_its_share(job_of: Callable[..., Job]) -> None:
    job = job_of(top=6, within="kind")
    selection.run(job)
    rises = [number for number in range(COUNT) if number % 3 == 0]
    sums = [number for number in range(COUNT) if number % 3]
    assert read_kept(job) == sorted([*rank(2, rises), *rank(4, sums)])


def test_long_references_have_higher_scores_per_answer_than_per_token(job_of: Callable[..., Job]) -> None:
    folder = job_of().root / "data/questions/imitation"
    rows = read_shards(folder).to_pylist()
    rows[11]["answer"] = "sum of the digits " * 3  # the teacher's log p is 0.5 a token lower than that of question 0
    rows[0]["answer"] = "1"
    write_shards(folder, rows, QUESTION_SCHEMA)
    scores = {}
    for per in ("answer", "token"):
        job = job_of(top=5, per=per)
        selection.run(job)
        scores[per] = [row["score"] for row in read_shards(job.out / "scores").to_pylist()]
    difference = [LOG_PROBS["qwen2_5_vl"][number] + 0.3 for number in range(COUNT)]
    assert scores["token"] == pytest.approx(difference, abs=1e-3)
    tokens = [row["reference_tokens"] for row in read_shards(job.out / "scores").to_pylist()]
    assert tokens[11] > 2 * tokens[0]
    assert scores["answer"] == pytest.approx(
        [one * count for one, count in zip(difference, tokens, strict=True)], abs=2e-3
    )


def test_overlong_questions_are_dropped_unscored(job_of: Callable[..., Job]) -> None:
    folder = job_of().root / "data/questions/imitation"
    rows = read_shards(folder).to_pylist()
    rows[1]["messages"][0]["content"] += " sum of the digits" * 20
    rows[2]["answer"] = "sum of the digits " * 20
    rows[3]["messages"][0]["content"] += " sum of the digits" * 300
    rows[4]["messages"][0]["content"] = rows[4]["messages"][0]["content"].replace("<image>", "<image><image>")
    rows[4]["images"] = rows[4]["images"] * 2
    rows[4]["image_sha256"] = rows[4]["image_sha256"] * 2
    write_shards(folder, rows, QUESTION_SCHEMA)
    job = job_of()
    reader = load_reader_of(job)
    question = QuestionFolder(job.root / "data/questions", "imitation")
    limit = reader.count_prompt_tokens(question[0].messages, question[0].images) + 3
    assert reader.count_prompt_tokens(question[4].messages, question[4].images) > limit  # by its second image
    job = job_of(max_prompt_tokens=limit, max_reference_tokens=10)
    selection.run(job)
    assert read_kept(job) == [0, *range(5, COUNT)]
    assert not Scripted.asked
    dropped = {row["id"]: row["dropped"] for row in read_shards(job.out / "scores").to_pylist() if row["dropped"]}
    assert dropped == {
        "imitation-1": "prompt too long",
        "imitation-2": "reference too long",
        "imitation-3": "prompt too long",
        "imitation-4": "prompt too long",
    }
    job = job_of(max_reference_tokens=10, top=4)
    selection.run(job)
    metrics = read_json(job.reports / "metrics.json")
    assert metrics["dropped"] == {"reference too long": 1, "longer than the student's context": 1, "low score": 6}
    assert {name for _, name in Scripted.asked} == {
        f"imitation-{number}" for number in range(COUNT) if number not in (2, 3)
    }
    with pytest.raises(UnusableData, match=r"keeps none of 12 questions \(12 prompt too long\); raise its bounds"):
        selection.run(job_of(max_prompt_tokens=1))


def test_questions_of_the_warm_start_can_be_those_of_ril(job_of: Callable[..., Job]) -> None:
    """Their target is neither asked nor scored: the reference is."""
    job = job_of(split="warm_start", top=3)
    selection.run(job)
    folder = job.root / "data/questions"
    kept = open_kept_questions(folder, job.out / "kept")
    assert [one.id for one in kept] == [f"warm_start-{number}" for number in rank(3)]
    assert all(one.messages[-1]["role"] == "user" for one in kept)
    assert all(parts.messages[-1]["role"] == "user" for parts in kept.iter_key_parts())
    found = find_questions(folder, IMITATION_SPLITS, [one.id for one in kept])
    assert [found[one.id] for one in kept] == list(kept)
    mixed = find_questions(folder, IMITATION_SPLITS, ["warm_start-3", "imitation-4", "unknown"])
    assert set(mixed) == {"warm_start-3", "imitation-4"}


def test_all_are_kept_unscored_where_top_is_no_bound(job_of: Callable[..., Job]) -> None:
    job = job_of(top=COUNT)
    selection.run(job)
    assert read_kept(job) == list(range(COUNT))
    assert not Scripted.asked


def test_what_a_model_cannot_score_is_dropped_up_to_a_share(job_of: Callable[..., Job]) -> None:
    Scripted.refuses = {"imitation-5"}
    job = job_of(top=5, max_reject_share=0.1)
    selection.run(job)
    assert read_kept(job) == rank(5, [number for number in range(COUNT) if number != 5])
    lines = [json.loads(line) for line in (job.reports / "rejects.jsonl").read_text().splitlines()]
    assert [(line["question_id"], line["kind"]) for line in lines] == [("imitation-5", "refused")] * 2
    assert read_json(job.reports / "metrics.json")["dropped"] == {"not scored": 1, "low score": 6}
    with pytest.raises(TooManyRejects, match=r"selection: teacher: 1 of 12 answers are missing"):
        selection.run(job_of(top=5, max_reject_share=0.05))


def test_a_log_probability_that_is_not_finite_is_not_stored(job_of: Callable[..., Job]) -> None:
    Scripted.broken = True
    with pytest.raises(TooManyRejects, match="a log probability is not finite"):
        selection.run(job_of(top=5))
    Scripted.broken = False
    selection.run(job_of(top=5))
    assert read_kept(job_of()) == rank(5)


def test_a_stored_text_that_is_no_score_is_named(job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.responses.answers.format_log_probs", lambda _: "[1, NaN]")
    with pytest.raises(UnusableFile, match=r"of question 'imitation-0': log probabilities are a list of numbers"):
        selection.run(job_of(top=5))


def test_a_list_of_other_questions_is_refused(job_of: Callable[..., Job]) -> None:
    job = job_of()
    selection.run(job)
    folder = job.root / "data/questions"
    rows = read_shards(folder / "imitation").to_pylist()
    write_shards(folder / "imitation", rows[1:], QUESTION_SCHEMA)
    with pytest.raises(StaleSelection, match=r"lists question 'imitation-0', which is not in .*dvc repro selection"):
        open_kept_questions(folder, job.out / "kept")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"top": 1000}, "selection.top is 1000, more than questions.splits.imitation (400); lower it"),
        ({"teacher": "nobody"}, "selection.teacher is 'nobody', not an entry of models"),
        ({"top": 5, "teacher": "judge"}, "selection.teacher is 'judge' of family 'qwen2_5', which sees no images"),
        ({"top": -1}, "selection.top = -1: Input should be greater than or equal to 0"),
        ({"student": "data/ril/model"}, "selection.student = 'data/ril/model'"),
        ({"split": "test"}, "selection.split = 'test'"),
        ({"per": "word"}, "selection.per = 'word'"),
        ({"within": "image"}, "selection.within = 'image'"),
        ({"max_prompt_tokens": -1}, "selection.max_prompt_tokens = -1"),
        ({"max_reference_tokens": -1}, "selection.max_reference_tokens = -1"),
    ],
)
def test_settings_that_cannot_work_are_named(root: Path, block: dict[str, Any], said: str) -> None:
    values = merge_params(read_yaml(root / "params.yaml"), {"selection": block})
    with pytest.raises(ParamsError) as caught:
        validate_params(values)
    assert said in str(caught.value)


def test_a_remote_model_scores_nothing(root: Path) -> None:
    values = merge_params(read_yaml(root / "params.yaml"), {"selection": {"top": 5}})
    values["models"]["qwen2_5_vl"] = {
        "family": "remote",
        "endpoint": {"provider": "somebody", "name": "large"},
        "context_tokens": 256,
    }
    values["runtime"]["engines"] = {"qwen2_5_vl": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(ParamsError, match="gives no log probabilities of a given answer"):
        validate_params(values)


def test_groups_share_by_largest_remainders() -> None:
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    scores = np.arange(10.0)
    assert np.flatnonzero(pick_best(scores, groups, 4)).tolist() == [3, 4, 7, 9]  # shares 2.0, 1.2, 0.8
    assert np.flatnonzero(pick_best(scores, [""] * 10, 4)).tolist() == [6, 7, 8, 9]
    assert np.flatnonzero(pick_best(np.zeros(4), [""] * 4, 2)).tolist() == [0, 1]
    assert pick_best(scores, groups, 99).all()
    for top in range(11):
        assert int(pick_best(scores, groups, top).sum()) == top


def test_stored_scores_are_read_as_they_were_written() -> None:
    values = [-0.25, -1e-6, -12345.678949, 0.0]
    assert format_log_probs(values) == "[-0.2500, -0.0000, -12345.6789, 0.0000]"
    assert parse_log_probs(format_log_probs(values)) == pytest.approx(values, abs=1e-4)
    assert math.copysign(1, parse_log_probs("[-0.0000]")[0]) == -1
    assert parse_log_probs("[]") == []
    for text in ("", "{}", "[1]", '["a"]', "[NaN]", "[-Infinity]", "[[0.5]]"):
        with pytest.raises(UnusableFile):
            parse_log_probs(text)

"""Asking through the store: what is generated, what is served, what is on disk after a crash."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from flows.environment import store_folder
from flows.jobs import open_job
from stages.config.answers import AnswerBounds
from stages.config.build import Build
from stages.config.params import load_params
from stages.config.sampling import Sampling
from stages.engines.engine import Answer, Outcome, Request, RequestError
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import Job
from stages.job.rejects import Reject, TooManyRejects
from stages.responses import answers, window
from stages.responses.answers import (
    Generation,
    fetch_answers,
    fetch_converted,
    make_generation_spec,
    read_stored_answers,
)
from stages.responses.projection import write_projection
from stages.responses.requested import RequestedAnswers
from stages.responses.schemas import ANSWERS, compute_answer_statistics
from stages.responses.sets import find_faults
from stages.responses.space import UnusableStore
from stages.responses.store import Store, StoredAnswer
from stages.responses.template import read_template
from stages.responses.variety import AnswerVariety
from stages.tiny.builds.shapes import build_tiny
from stages.vlm import reader
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_chat

SAMPLING = Sampling(max_tokens=8)
OPEN = 3  # requests that the engine works on


def answer_rows(question_ids: Sequence[str], answers: Sequence[Sequence[StoredAnswer]]) -> list[dict[str, Any]]:
    """Rows of ANSWERS in the order of the questions, then of the samples."""
    return [
        {
            "question_id": question_id,
            "sample": answer.sample,
            "response": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "response_key": answer.key,
            "token_ids": list(answer.token_ids),
        }
        for question_id, samples in zip(question_ids, answers, strict=True)
        for answer in samples
    ]


@dataclass(frozen=True)
class Prompt:
    id: str
    messages: tuple[dict[str, str], ...]
    images: tuple[bytes, ...] = ()
    image_sha256: tuple[str, ...] = ()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"q{index}", ({"role": "user", "content": f"What is {index} + 1?"},)) for index in range(count)]


class Counting:
    """An engine whose answers are a function of prompt and seed; it remembers what it was asked and can die midway.

    It takes OPEN requests and finishes them out of order, the first one last.
    """

    name, version = "counting", "1"

    def __init__(self) -> None:
        self.starts = 0
        self.asked: list[Request] = []
        self.taken: list[str] = []  # ids of questions, in the order of the requests
        self.opens: list[int] = []  # requests that it worked on when it finished one
        self.dies_at = -1  # number of requests taken before it dies
        self.gives_up: set[str] = set()  # ids of questions
        self.refuses: set[str] = set()  # ids of questions
        self.closed = 0

    def __call__(self, checkpoint: Any, runtime: Any, gpus: int) -> "Counting":
        self.starts += 1
        return self

    @property
    def written(self) -> int:
        return sum(request.n for request in self.asked if request.name not in self.refuses)

    @property
    def names(self) -> list[str]:
        return [request.name for request in self.asked]

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        waiting = enumerate(requests)
        opened: list[tuple[int, Request]] = []
        while True:
            fresh = list(itertools.islice(waiting, OPEN - len(opened)))
            self.taken += [request.name for _, request in fresh]
            opened += fresh
            if not opened:
                return
            self.opens.append(len(opened))
            if len(self.asked) >= self.dies_at >= 0:
                raise KeyboardInterrupt
            index, request = opened.pop(len(opened) // 2)
            self.asked.append(request)
            if request.name in self.refuses:
                yield index, f"question {request.name}: it is too long"
                continue
            reason = "abort" if request.name in self.gives_up else "stop"
            texts = [f"{request.messages[-1]['content']} {request.seed + sample}" for sample in range(request.n)]
            yield index, [Answer(sample, text, (1, 2), reason, 3, 2) for sample, text in enumerate(texts)]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model's folder; its weights are never loaded."""
    folder = tmp_path_factory.mktemp("model") / "judge"
    folder.mkdir()
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=32, layers=1, heads=1, vision_hidden_size=32, vision_layers=1
    )
    _, network = build_tiny("qwen2_5", build, ["What is 1 + 1?"], 64, 0, folder)
    network.model.config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")  # a folder without weights is no checkpoint
    write_card(folder, "qwen2_5", "fp32", 64)
    return folder


@pytest.fixture
def job(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(window, "SEGMENT_ANSWERS", 16)
    return open_job("rollout", None, tmp_path, load_params(root / "params.yaml"))


Ask = Callable[..., list[list[str]]]


@pytest.fixture
def ask(job: Job, checkpoint: Path) -> Ask:
    def texts(
        asked: Sequence[Prompt],
        engine: Counting,
        n: int = 4,
        draw: int = 0,
        sampling: Sampling = SAMPLING,
        share: float | None = None,
    ) -> list[list[str]]:
        now = replace(job, store=store_folder(job.root))  # a test may have set another one
        found = fetch_answers(now, Generation(checkpoint, sampling, n, draw), asked, "answers", engine, share)
        return [[answer.text for answer in row] for row in found]

    return texts


def test_what_is_stored_is_served_without_an_engine(ask: Ask) -> None:
    first, second = Counting(), Counting()
    given = ask(prompts(10), first)
    assert (first.written, first.closed) == (40, 1)
    assert ask(prompts(10), second) == given
    assert second.starts == 0
    assert [len(row) for row in given] == [4] * 10
    assert len({text for row in given for text in row}) == 40


def test_more_answers_pay_only_for_the_new_ones(ask: Ask) -> None:
    four = ask(prompts(10), Counting())
    engine = Counting()
    eight = ask(prompts(10), engine, n=8)
    assert engine.written == 40
    assert [row[:4] for row in eight] == four
    assert eight == ask(prompts(10), Counting(), n=8, draw=0)
    fewer = Counting()
    assert ask(prompts(10), fewer, n=2) == [row[:2] for row in four]
    assert fewer.starts == 0


def test_growing_makes_the_answers_that_asking_at_once_makes(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(prompts(5), Counting(), n=2)
    grown = ask(prompts(9), Counting(), n=5)
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "other"))
    assert ask(prompts(9), Counting(), n=5) == grown


def test_other_ids_and_order_cost_nothing_and_other_settings_cost_all(ask: Ask) -> None:
    given = ask(prompts(10), Counting())
    renamed = [Prompt(f"new-{prompt.id}", prompt.messages) for prompt in reversed(prompts(10))]
    engine = Counting()
    assert ask(renamed, engine) == given[::-1]
    assert engine.starts == 0
    for change in ({"draw": 1}, {"sampling": Sampling(max_tokens=9)}):
        engine = Counting()
        ask(prompts(10), engine, **change)
        assert engine.written == 40


def test_equal_prompts_are_asked_once(ask: Ask) -> None:
    engine = Counting()
    given = ask([*prompts(3), Prompt("twin", prompts(3)[1].messages)], engine)
    assert engine.written == 12
    assert given[3] == given[1]


@pytest.mark.parametrize("dies_at", [0, 1, 6, 13, 19])
def test_a_run_that_is_interrupted_keeps_what_was_answered_and_asks_the_rest_alike(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    undisturbed = Counting()
    given = ask(prompts(20), undisturbed)
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "other"))
    dying, rest = Counting(), Counting()
    dying.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        ask(prompts(20), dying)
    assert (dying.closed, len(dying.asked)) == (1, dies_at)
    assert ask(prompts(20), rest) == given
    by_name = {request.name: request for request in [*dying.asked, *rest.asked]}
    assert by_name == {request.name: request for request in undisturbed.asked}  # the same seeds
    assert len(dying.asked) + len(rest.asked) == 20


def test_requests_are_taken_in_order_when_there_is_room_for_them(ask: Ask, job: Job) -> None:
    """No barrier: the engine has OPEN of them until the last was taken, over the borders of segments."""
    engine = Counting()
    ask(prompts(20), engine)
    assert engine.taken == [prompt.id for prompt in prompts(20)]
    assert engine.opens == [*[OPEN] * 18, 2, 1]
    segments = [pq.read_table(file)["question_id"].to_pylist() for file in sorted(job.store.rglob("*.parquet"))]
    assert [len(rows) for rows in segments] == [16] * 5  # written while the engine goes on
    assert all(rows == sorted(rows, key=lambda name: int(name[1:])) for rows in segments)


def test_failures_are_no_answers(ask: Ask) -> None:
    failing, rest = Counting(), Counting()
    failing.gives_up = {"q4", "q5", "q11", "q19"}
    with pytest.raises(RuntimeError, match=r"answers: 16 answers failed .* run again"):
        ask(prompts(20), failing)
    ask(prompts(20), rest)
    assert rest.written == 16
    assert set(rest.names) == failing.gives_up


def test_progress_says_what_is_there(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask(prompts(3), Counting())
    ask(prompts(6), Counting())
    assert "24 answers wanted, 12 in the store (50%), 12 to generate" in capsys.readouterr().err


def test_several_greedy_answers_are_refused(ask: Ask) -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        ask(prompts(1), Counting(), sampling=Sampling(temperature=0.0))


def test_the_projection_has_the_same_bytes_again(job: Job, checkpoint: Path, tmp_path: Path) -> None:
    ids = [prompt.id for prompt in prompts(20)]
    for name in ("first", "again"):
        rows = answer_rows(
            ids, fetch_answers(job, Generation(checkpoint, SAMPLING, 4), prompts(20), "answers", Counting())
        )
        write_shards(tmp_path / name, rows, ANSWERS)
    files = [sorted((tmp_path / name).iterdir()) for name in ("first", "again")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert len(files[0]) == 1


# --- what can't be answered -------------------------------------------------------------------------------------------


def test_a_refused_question_costs_its_own_answers_only(ask: Ask) -> None:
    engine, again = Counting(), Counting()
    engine.refuses = {"q3", "q4", "q17"}
    given = ask(prompts(20), engine, share=0.2)
    assert [len(row) for row in given] == [0 if index in (3, 4, 17) else 4 for index in range(20)]
    assert engine.written == 17 * 4
    assert len(engine.asked) == 20
    assert ask(prompts(20), again, share=0.2) == given
    assert again.starts == 0  # what is known to be refused starts no engine


def test_a_refused_question_is_asked_again_when_an_engine_runs_anyway(ask: Ask) -> None:
    engine, again = Counting(), Counting()
    engine.refuses = {"q3"}
    ask(prompts(8), engine, share=0.2)
    given = ask(prompts(9), again, share=0.2)
    assert [len(row) for row in given] == [4] * 9
    assert set(again.names) == {"q8", "q3"}


def test_a_run_that_dies_after_a_refusal_asks_the_refused_question_last(ask: Ask) -> None:
    dying, rest = Counting(), Counting()
    for engine in (dying, rest):
        engine.refuses = {"q1"}
    dying.dies_at = 9
    with pytest.raises(KeyboardInterrupt):
        ask(prompts(16), dying, share=0.2)
    given = ask(prompts(16), rest, share=0.2)
    assert [len(row) for row in given] == [0 if index == 1 else 4 for index in range(16)]
    assert "q1" in dying.names
    assert rest.taken[-1] == "q1"
    assert dying.written + rest.written == 60


def test_too_many_lacking_answers_stop_the_run_at_once(ask: Ask) -> None:
    engine, rest = Counting(), Counting()
    engine.refuses = {"q1", "q2"}
    with pytest.raises(
        TooManyRejects, match=r"answers: 8 of 80 answers are missing, above max_reject_share = 0.05; .*q1 refused"
    ):
        ask(prompts(20), engine, share=0.05)
    assert len(engine.asked) < 4 + 2 * OPEN  # those of the first segment, and the ones that were open then
    assert sum(map(len, ask(prompts(20), rest, share=0.05))) == 80
    assert engine.written + rest.written == 80


def test_without_a_share_a_refusal_ends_the_run_after_all_else_is_stored(ask: Ask) -> None:
    engine, rest = Counting(), Counting()
    engine.refuses = {"q1"}
    with pytest.raises(RequestError, match="q1: it is too long"):
        ask(prompts(20), engine)
    assert engine.written == 76
    ask(prompts(20), rest)
    assert rest.written == 4


def test_failed_answers_leave_gaps_and_are_asked_again(ask: Ask) -> None:
    failing, rest = Counting(), Counting()
    failing.gives_up = {"q4", "q5", "q11", "q19"}
    given = ask(prompts(20), failing, share=0.3)
    assert sum(map(len, given)) == 64
    assert sum(map(len, ask(prompts(20), rest, share=0.3))) == 80
    assert rest.written == 16


def test_an_engine_that_breaks_keeps_what_it_had_finished(ask: Ask) -> None:
    class Breaking(Counting):
        def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
            for number, found in enumerate(super().iter_outcomes(requests)):
                if number == 3:
                    raise RuntimeError("the server died")
                yield found

    rest = Counting()
    with pytest.raises(RuntimeError, match="the server died"):
        ask(prompts(4), Breaking())
    ask(prompts(4), rest)
    assert rest.written == 4


def test_a_store_that_cannot_be_written_starts_no_engine(ask: Ask, job: Job) -> None:
    job.store.mkdir()
    (job.store / "responses").write_text("in the way")
    engine = Counting()
    with pytest.raises(UnusableStore, match=r"answers can't be written.*move away .*responses, which is no folder"):
        ask(prompts(2), engine)
    assert (engine.starts, engine.written) == (0, 0)


def test_a_disk_that_fills_up_ends_before_the_next_portion_and_nothing_is_paid_twice(
    ask: Ask, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    @contextmanager
    def reserve(folder: Path, size: int) -> Iterator[None]:
        if next(calls) == 3:  # one for the start, one for each portion
            raise UnusableStore(f"{folder}: no room for {size}")
        yield

    engine = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(answers, "reserve_space", reserve)
        with pytest.raises(UnusableStore, match="no room for"):
            ask(prompts(12), engine)
    assert engine.written == 32  # two portions, and both are stored
    rest = Counting()
    ask(prompts(12), rest)
    assert rest.written == 16


def test_broken_files_beside_the_answers_are_said_once_and_passed_over(
    ask: Ask, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ask(prompts(2), Counting())
    (folder,) = (job.store / "responses").iterdir()
    (folder / "about.json").write_text("[1]")
    (folder / "refused").mkdir()
    (folder / "refused" / "a.jsonl").write_text("null")
    capsys.readouterr()
    engine = Counting()
    assert ask(prompts(2), engine) == given
    assert engine.starts == 0
    said = capsys.readouterr()
    said_lines = (said.out + said.err).splitlines()
    for name, reason in (("about.json", "expected an object, found [1]"), ("a.jsonl", "line 1: expected an object")):
        (line,) = (line for line in said_lines if f"{name}: " in line)
        assert reason in line


def test_a_damaged_text_is_asked_again(ask: Ask, job: Job) -> None:
    """The segment's keys can be read and its texts can't: that shows only when they are wanted."""
    given = ask(prompts(4), Counting())
    (file,) = job.store.rglob("*.parquet")
    texts = pq.ParquetFile(file).metadata.row_group(0).column(4)
    data = bytearray(file.read_bytes())
    data[texts.dictionary_page_offset + texts.total_compressed_size // 2] ^= 1
    file.write_bytes(data)
    engine = Counting()
    assert ask(prompts(4), engine) == given
    assert engine.written == 16
    assert file.exists()


def test_the_store_says_who_was_asked_and_what(ask: Ask, job: Job) -> None:
    ask(prompts(2), Counting())
    (folder,) = (job.store / "responses").iterdir()
    about = read_json(folder / "about.json")
    assert (about["name"], about["family"], about["sampling"]["max_tokens"]) == ("judge", "qwen2_5", 8)
    assert list(find_faults(folder)) == [8]  # keys are the hashes of what stands beside them
    (file,) = folder.glob("*.parquet")
    row = pq.read_table(file).to_pylist()[0]
    assert (row["engine"], row["engine_version"], row["model"], row["revision"]) == (
        "counting",
        "1",
        "judge",
        about["model"],
    )
    assert json.loads(row["request"]) == {"messages": [["user", "What is 0 + 1?"]], "images": []}
    assert str(job.root) not in str(row)


def test_what_a_run_paid_is_kept_with_the_times(ask: Ask, job: Job) -> None:
    ask(prompts(10), Counting())
    ask(prompts(10), Counting(), n=8)
    job.write_timing(1.0)
    paid = read_json(job.reports / "timing.json")["answers"]
    assert (paid["answers_wanted"], paid["answers_generated"], paid["store_hit_share"]) == (80, 40, 0.5)
    assert (paid["prompt_tokens_paid"], paid["completion_tokens_paid"]) == (30, 80)
    (both,) = read_json(job.reports / "timing.json")["paid"].values()  # of all that was asked under one title
    assert (both["wanted"], both["stored"], both["generated"]) == (120, 40, 80)
    assert both["completion_tokens"] == 160


LENIENT = AnswerBounds(max_empty_share=1.0, max_same_share=1.0)


def test_the_streamed_projection_has_the_bytes_of_plain_rows(job: Job, checkpoint: Path, tmp_path: Path) -> None:
    """In blocks and from many segments, as from one list."""
    asked = prompts(600)
    found = fetch_answers(job, Generation(checkpoint, SAMPLING, 4), asked, "answers", Counting())
    write_shards(tmp_path / "plain", answer_rows([prompt.id for prompt in asked], found), ANSWERS)
    wanted = RequestedAnswers.from_prompts(
        make_generation_spec(open_checkpoint(checkpoint), SAMPLING, 0, job.store), asked, 4
    )
    (folder,) = (job.store / "responses").iterdir()
    counts = write_projection(
        tmp_path / "streamed", Store(folder, pytest.fail), wanted, AnswerVariety("answers", LENIENT, pytest.fail)
    )
    files = [sorted((tmp_path / name).iterdir()) for name in ("plain", "streamed")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert len(files[0]) == 3
    rows = read_shards(tmp_path / "plain").to_pylist()
    assert counts.compute_statistics() == compute_answer_statistics(rows)


def test_a_stage_that_lacks_nothing_reads_no_tokenizer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Counting()
    first = ask(prompts(4), engine)
    monkeypatch.setattr(reader, "load_chat", lambda checkpoint: pytest.fail("the tokenizer was read"))
    assert ask(prompts(4), engine) == first
    assert engine.starts == 1


def test_a_template_is_kept_for_one_model_and_one_reading_of_it(
    job: Job, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_checkpoint(checkpoint)
    kept = read_template(model, job.store)
    assert kept.hash == load_chat(model).template_hash
    assert kept.banned == tuple(load_chat(model).banned_token_ids)
    read: list[str] = []

    def changed(one: Checkpoint) -> SimpleNamespace:
        read.append(one.identity)
        return SimpleNamespace(template_hash="new", banned_token_ids=[1])

    monkeypatch.setattr(reader, "load_chat", changed)
    assert read_template(model, job.store) == kept
    assert read == []
    assert read_template(replace(model, identity="another"), job.store).hash == "new"
    monkeypatch.setattr("stages.responses.template.version", lambda package: "another")
    assert read_template(model, job.store).hash == "new"
    assert read == ["another", model.identity]
    (tmp_path / "no folder").write_text("")
    assert read_template(model, tmp_path / "no folder").hash == "new"  # a store that can't be written is no error


def test_asking_needs_torch_only_when_something_is_missing(root: Path) -> None:
    command = "import stages.teacher, stages.rollout, sys; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "set()\n"


def test_what_the_store_has_is_told_without_an_engine(job: Job, checkpoint: Path, ask: Ask) -> None:
    engine = Counting()
    found = ask(prompts(4), engine, n=2)
    stored = read_stored_answers(job, Generation(checkpoint, SAMPLING, 2), prompts(6))
    assert [[answer.text for answer in row] for row in stored] == [*found, [], []]
    assert engine.starts == 1


def test_rejects_are_told_with_the_answers(job: Job, checkpoint: Path) -> None:
    engine = Counting()
    engine.refuses = {"q2"}
    found, rejects = fetch_converted(job, Generation(checkpoint, SAMPLING, 2), prompts(4), len, 0.5, engine)
    assert found == [2, 2, 0, 2]
    assert rejects == [Reject("q2", 0, 2, "refused", "question q2: it is too long")]

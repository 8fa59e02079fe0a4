"""A cap on what an endpoint is paid, with a real HTTP server: what is stored, and what a higher cap pays for."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.jobs import open_job
from stages.config.params import validate_params
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.engines.engine import EngineError, Request, StartOptions
from stages.engines.start import start_engine
from stages.job.job import Job
from stages.job.spending import BUDGET_CODE, BudgetReached
from stages.job.stop import STOP
from stages.responses.answers import Generation, fetch_answers
from stages.vlm.checkpoint import open_checkpoint, write_card
from tests.faults.endpoint import Fake, listening
from tests.stages.responses.test_answers import prompts

Ask = Callable[..., int]
SAMPLING = Sampling(max_tokens=20)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with listening() as state:
        yield state


@pytest.fixture
def open_teacher(root: Path, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """The job of a teacher at the endpoint, with caps; further values are of its engine."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    write_card(tmp_path / "data" / "model" / "internvl3", "remote", "bf16", 4096, {"endpoint": ENDPOINT})

    def open_one(caps: dict[str, Any], **engine: Any) -> Job:
        values = merge_params(read_yaml(root / "params.yaml"), make_overlay(fake, caps, **engine))
        values["models"]["internvl3"] = {"family": "remote", "endpoint": ENDPOINT}
        return open_job("teacher", "internvl3", tmp_path, validate_params(values))

    return open_one


ENDPOINT = {"provider": "somebody", "name": "big-1"}


def make_overlay(fake: Fake, caps: dict[str, Any], **engine: Any) -> dict[str, Any]:
    given = {"kind": "openai", "base_url": fake.url, "attempts": 1, **engine}
    return {
        "runtime": {"engines": {"internvl3": given}},
        "budget": {"teacher": caps},
        "selection": {"teacher": "qwen2_5_vl"},
    }


def ask(job: Job, count: int, n: int = 1) -> int:
    """Asks for n answers to `count` questions; returns how many came."""
    generation = Generation(job.root / "data" / "model" / "internvl3", SAMPLING, n)
    return sum(len(row) for row in fetch_answers(job, generation, prompts(count), "answers"))


def count_stored(job: Job) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (job.store / "responses").rglob("*.parquet"))


@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize("alone", [False, True])
def test_a_cap_of_100_stores_100_and_a_higher_one_pays_for_the_rest(
    open_teacher: Callable[..., Job], fake: Fake, n: int, alone: bool
) -> None:
    questions = -(-160 // n)
    fake.latency = 0.005
    job = open_teacher({"answers": 100}, concurrency=16, one_answer_a_request=alone)
    with pytest.raises(BudgetReached, match=r"budget\.teacher\.answers is 100 and used up: spent so far 100 answers"):
        ask(job, questions, n)
    assert count_stored(job) == 100 == sum(body["n"] for body in fake.bodies)
    sent = fake.count
    with pytest.raises(BudgetReached, match=f"{questions * n - 100} answers are missing"):
        ask(open_teacher({"answers": 100}), questions, n)
    assert fake.count == sent, "nothing more is paid with the same cap"
    higher = open_teacher({"answers": questions * n}, one_answer_a_request=alone)
    assert ask(higher, questions, n) == questions * n == count_stored(higher)
    assert sum(body["n"] for body in fake.bodies) == questions * n, "each answer was paid once"


def test_answers_that_fail_leave_room_for_others(open_teacher: Callable[..., Job], fake: Fake) -> None:
    fake.fault = lambda question, before: (500, {}) if question.startswith(("What is 3 ", "What is 7 ")) else None
    job = open_teacher({"answers": 20}, concurrency=4)
    with pytest.raises(BudgetReached):
        ask(job, 40)
    assert count_stored(job) == 20


def test_money_is_capped_by_prices(open_teacher: Callable[..., Job], fake: Fake) -> None:
    """An answer is 5 tokens read and 3 written: 5 * 1,000 + 3 * 5,000 of a million, 0.02."""
    priced = {"prompt_price": 1000.0, "completion_price": 5000.0, "concurrency": 8}
    job = open_teacher({"money": 0.5}, **priced)
    with pytest.raises(
        BudgetReached, match=r"money is 0\.5 and used up.*25 answers, 200 tokens, 0\.5 money.*15 answers"
    ):
        ask(job, 40)
    assert count_stored(job) == 25


def test_a_cap_on_money_needs_prices(open_teacher: Callable[..., Job]) -> None:
    with pytest.raises(
        ParamsError, match=r"budget\.teacher\.money needs prices: set runtime\.engines\.internvl3\.prompt"
    ):
        open_teacher({"money": 1.0})


def test_a_budget_changes_no_fingerprint(open_teacher: Callable[..., Job]) -> None:
    assert open_teacher({"answers": 1}).values == open_teacher({"answers": 2}, prompt_price=1.0).values


def test_engines_of_this_machine_cost_no_answers(open_teacher: Callable[..., Job], tmp_path: Path) -> None:
    """Caps on answers are of endpoints: the same session with another engine is not held back."""
    from tests.stages.responses.test_answers import Counting

    job, engine = open_teacher({"answers": 10}), Counting()
    job = replace(job, runtime=job.runtime.model_copy(update={"engines": {}}))
    generation = Generation(tmp_path / "data" / "model" / "internvl3", SAMPLING)
    assert len(fetch_answers(job, generation, prompts(30), "answers", engine)) == 30


def test_the_judge_of_a_loop_ends_it_after_its_step(
    open_teacher: Callable[..., Job], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that no session asks, as in stage `ril`: what is under way is answered, and the loop is told to end."""
    monkeypatch.setattr(STOP, "code", None)
    job = open_teacher({"answers": 3}, concurrency=1)
    checkpoint = open_checkpoint(job.root / "data" / "model" / "internvl3")
    options = StartOptions(job.store / "logs", stage="teacher", spending=job.spending)
    engine = start_engine(checkpoint, job.block(Runtime), options)
    requests = [Request(one.id, one.messages, [], SAMPLING, 1, 0) for one in prompts(6)]
    with STOP.awaiting():
        assert len(list(engine.generate(requests[:2]))) == 2
        assert STOP.code is None
        assert len(list(engine.generate(requests[2:]))) == 4
        assert STOP.code == BUDGET_CODE
    engine.close()
    with pytest.raises(BudgetReached, match="answers is 3 and used up: spent so far 6 answers"):
        start_engine(checkpoint, job.block(Runtime), options)


def test_replies_of_no_use_are_paid_and_no_answers(open_teacher: Callable[..., Job], fake: Fake) -> None:
    """An endpoint that sends one answer where four were asked for: the tokens are spent, the answers are not."""
    fake.knows_n = False
    job = open_teacher({"answers": 100})
    with pytest.raises(EngineError, match="one answer where 4 were asked for"):
        ask(job, 1, 4)
    assert job.spending.find_reached() is None
    assert job.spending.spent == {"answers": 0, "tokens": 8, "money": 0}


def test_the_rest_of_a_request_that_was_cut_is_asked_for_once(open_teacher: Callable[..., Job], fake: Fake) -> None:
    """4 + 4 + 2 of 4 answers; the second request fails, which leaves room for the other 2 and for 2 more."""
    third = threading.Event()  # has come, so the cap is reserved: only then does the second one fail

    def fail_second(question: str, before: int) -> Any:
        if question.startswith("What is 2 "):
            third.set()
        return (500, {}) if question.startswith("What is 1 ") and third.wait(30) else None

    fake.fault = fail_second
    job = open_teacher({"answers": 10}, concurrency=4)
    with pytest.raises(BudgetReached):
        ask(job, 6, 4)
    files = (job.store / "responses").rglob("*.parquet")
    keys = [row["key"] for file in files for row in pq.read_table(file, columns=["key"]).to_pylist()]
    assert len(keys) == len(set(keys)) == 10
    asked: dict[str, list[int]] = {}
    for body in fake.bodies:
        asked.setdefault(body["messages"][-1]["content"][: len("What is 0")], []).append(body["n"])
    assert asked == {"What is 0": [4], "What is 1": [4], "What is 2": [2, 2], "What is 3": [2]}

"""The judge works while the discriminator learns and the reference pass runs, and nothing but time depends on it."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages import discriminator, ril
from stages.adversary.adversary import Adversary
from stages.config.engines import OpenAi
from stages.config.objective import PAPER
from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Answer
from stages.job.files import read_json
from stages.job.hashes import hash_file, hash_json
from stages.job.job import Job
from stages.judging import queue as judging
from stages.judging.faults import turn_verdict
from stages.judging.judge import JudgeVerdict
from stages.judging.queue import JudgeQueue
from stages.loop.rollouts import Rollouts, make_student_response
from stages.training.guard import StepGuard
from stages.vlm.checkpoint import open_checkpoint, write_card
from tests.faults.endpoint import Fake, listening

Project = Callable[[str, Mapping[str, Any]], Job]
ENDPOINT = {"provider": "somebody", "name": "judge-1"}
SLOW = 2.0  # seconds that the judge takes, and the discriminator


@pytest.fixture
def fake() -> Iterator[Fake]:
    """An endpoint that finds about half of all answers right, by what it is asked."""
    with listening() as state:
        state.says = lambda question, _: f"so. <answer>{int(hash_json(question)[:2], 16) % 2}</answer>"
        yield state


def engine(fake: Fake, folder: Path) -> EndpointEngine:
    write_card(folder, "remote", "bf16", 4096, {"endpoint": ENDPOINT})
    return EndpointEngine(open_checkpoint(folder), OpenAi(kind="openai", base_url=fake.url), "judge")


def results(job: Job) -> dict[str, str]:
    """sha256 of every file that the stage wrote, wall times left out."""
    files = [file for folder in (job.out, job.reports) for file in sorted(folder.rglob("*")) if file.is_file()]
    return {file.name: hash_file(file) for file in files if file.name not in ("timing.json", "params.json")}


def test_the_judge_hears_of_an_answer_before_the_next_one_is_there(fake: Fake, tmp_path: Path) -> None:
    """Each question's answers are with the judge while the student still writes those to the next."""
    endpoint = engine(fake, tmp_path)
    seen: list[int] = []

    class Student:
        def generate(self, requests: Any) -> Iterator[tuple[int, list[Answer]]]:
            for number in (2, 0, 1):  # whoever is ready first
                yield number, [Answer(sample, f"so {number}{sample}", (5,), "stop", 3, 1) for sample in range(2)]
                limit = time.monotonic() + 30
                while fake.count < 2 * (len(seen) + 1) and time.monotonic() < limit:
                    time.sleep(0.01)
                seen.append(fake.count)

    questions = [Question(f"q{n}", (), (), ({"role": "user", "content": "?"},), None, "1", "", "") for n in range(3)]
    block = Ril(steps=1, learning_rate=1e-3, discriminator_learning_rate=1e-3, group=2, sampling=Sampling(max_tokens=4))
    blocks = {Ril: block, Verdict: Verdict(model="judge")}
    job: Any = SimpleNamespace(
        name="ril", seed=lambda *_: 0, block=blocks.__getitem__, measure_time=lambda _: contextlib.nullcontext()
    )
    state: Any = SimpleNamespace(record=lambda step, rows: None, read_record=lambda step: None, guard=StepGuard())
    policy = SimpleNamespace(objective=PAPER)
    awake = {"judge_sleeps": False, "sleep_engines": lambda: None, "functions": None}
    models: Any = SimpleNamespace(engine=Student(), judge=endpoint, reader=None, policy=policy, **awake)
    rollouts = Rollouts(job, models, state, {question.id: [] for question in questions})
    groups = rollouts.collect(0, questions)
    assert seen == [2, 4, 6]
    assert [[row.text for row in rows] for rows in groups] == [[f"so {n}0", f"so {n}1"] for n in range(3)]
    verdicts = [[row.verdict for row in rows] for rows in rollouts.judge(0, groups)]
    endpoint.close()
    asked = {fake_body["messages"][-1]["content"] for fake_body in fake.bodies}
    for rows, found in zip(groups, verdicts, strict=True):
        for row, verdict in zip(rows, found, strict=True):
            (question,) = [text for text in asked if f" {row.text} " in text]
            assert verdict == int(hash_json(question)[:2], 16) % 2


def test_what_the_judge_refuses_is_a_failed_verdict(fake: Fake, tmp_path: Path) -> None:
    """The others keep theirs, and too many stop the step with the judge's own reason."""
    fake.fault = lambda question, _: (400, {}) if " no 1 " in question else None
    endpoint = engine(fake, tmp_path)
    question = Question("q", (), (), ({"role": "user", "content": "?"},), None, "1", "", "")
    rows = [make_student_response(Answer(n, f"no {n}", (5,), "stop", 3, 1)) for n in range(4)]
    for share in (0.5, 0.0):
        asking = JudgeQueue(endpoint, Verdict(model="judge", max_failed_share=share), "ril, step 1")
        asking.put(0, question, rows)
        if share:
            assert [place for place, verdict in asking.collect_verdicts().items() if verdict is None] == [(0, 1)]
        else:
            with pytest.raises(RuntimeError, match=r"ril, step 1: 1 of 4 verdicts failed.*HTTP 400"):
                asking.collect_verdicts()
    endpoint.close()


def test_a_judge_that_errs_turns_its_share_by_question_and_answer(fake: Fake, tmp_path: Path) -> None:
    endpoint = engine(fake, tmp_path)
    question = Question("q", (), (), ({"role": "user", "content": "?"},), None, "1", "", "")
    rows = [make_student_response(Answer(n, f"no {n}", (5,), "stop", 3, 1)) for n in range(60)]
    found = []
    for turned in (0.0, 0.2):
        asking = JudgeQueue(endpoint, Verdict(model="judge", turned=turned), "ril, step 1")
        asking.put(0, question, rows)
        found.append(asking.collect_verdicts())
    endpoint.close()
    honest, erring = found
    said = {place: JudgeVerdict(mark, "", None, asked=True) for place, mark in honest.items()}
    assert erring == {place: turn_verdict(one, "q", rows[place[1]].text, 0.2).verdict for place, one in said.items()}
    assert 4 <= sum(honest[place] != erring[place] for place in honest) <= 22
    ruled = JudgeVerdict(0, "empty", None)
    assert all(turn_verdict(ruled, "q", str(number), 0.9) == ruled for number in range(20))


@pytest.mark.slow
@pytest.mark.alone
def test_a_steps_time_is_the_larger_of_both_and_results_do_not_depend_on_it(
    loop_project: Project, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judge and discriminator both take two seconds a step; one after the other the step would wait for the judge two
    more.
    """
    folder = tmp_path / "data/model/judge"
    shutil.rmtree(folder)
    folder.mkdir()
    write_card(folder, "remote", "bf16", 4096, {"endpoint": ENDPOINT})
    overlay = {
        "models": {"judge": {"family": "remote", "build": None, "endpoint": ENDPOINT}},
        "runtime": {"engines": {"judge": {"kind": "openai", "base_url": fake.url}}},
    }
    discriminator.run(loop_project("discriminator", {}))
    learns = Adversary.learn_and_score

    def slowly(*arguments: Any) -> Any:
        time.sleep(SLOW)
        return learns(*arguments)

    found = {}
    for name, latency in (("quick", 0.0), ("slow", SLOW), ("in turn", 0.0)):
        fake.latency = latency
        with monkeypatch.context() as patch:
            if name == "slow":
                patch.setattr(Adversary, "learn_and_score", slowly)
            if name == "in turn":
                patch.setattr(judging, "ConcurrentEngine", type(None))
            job = loop_project("ril", overlay)
            ril.run(job)
        job.write_timing(0.0)
        found[name] = (results(job), read_json(job.reports / "timing.json")["parts"])
        shutil.rmtree(job.reports)
    waited = found["slow"][1]["judge"]
    print(f"2 steps, judge and discriminator {SLOW} s each: waited {waited:.2f} s for the judge")
    assert found["slow"][1]["discriminator"] >= 2 * SLOW
    assert waited < SLOW, "two steps, one after the other, would wait 4 s"
    assert found["quick"][0] == found["slow"][0] == found["in turn"][0]
    assert "model.safetensors" in found["quick"][0]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tag", "plain"])
def test_a_judge_on_a_real_server_gives_what_the_one_in_process_gives(loop_project: Project, form: str) -> None:
    """vLLM on loopback against vLLM in process, both greedy in fp32: every file of the stage is equal."""
    discriminator.run(loop_project("discriminator", {}))
    found = []
    for engines in ({}, {"judge": {"kind": "vllm_server", "sequences": 16, "start_seconds": 300}}):
        overlay = {"verdict": {"form": form, "constrained": True, "max_tokens": 120}, "runtime": {"engines": engines}}
        job = loop_project("ril", overlay)
        ril.run(job)
        found.append(results(job))
    assert found[0] == found[1]
    history = (job.reports / "history.csv").read_text().splitlines()
    failed = [row.split(",")[history[0].split(",").index("judge/failed")] for row in history[1:]]
    assert all(float(share) < 1 for share in failed), failed

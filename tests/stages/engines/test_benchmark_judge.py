"""A benchmark's judge behind a server that is slow, wrong, wordy or silent: no score is invented, the failures are
counted.
"""

from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages import evaluate
from stages.benchmarks.registry import load_registry
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import OURS
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores
from stages.benchmarks.verdicts import JudgeReply, make_judge_prompt
from stages.config.evaluate import Evaluate
from stages.config.params import validate_params
from stages.config.sampling import Sampling
from stages.config.yaml import merge_params, read_yaml
from stages.vlm.checkpoint import write_card

MODEL = {"provider": "somebody", "name": "judge-1"}
GRADES = {"right": "1.0", "half": "0.5"}
WORDS = {
    "wordy": "I would say that it is mostly right, so 1.0, or perhaps 0.5",
    "wrong": "7",
    "empty": "",
    "polite": "Sure! 1.0 :)",
}
FAULTS = {"silent": "silent", "broken": "broken", "cut": "cut", "gone": "reset", "overloaded": (503, {})}
KINDS = [*GRADES, *WORDS, *FAULTS]


@pytest.fixture
def grades(fake: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`grades()`: the numbers of MM-Vet with one row a kind, judged by the server through the store."""
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    write_card(tmp_path / "data/model/judge", "remote", "bf16", 4096, {"endpoint": MODEL})
    openai = {"kind": "openai", "base_url": fake.url, "attempts": 2, "concurrency": 16, "timeout": 2.0}
    overlay = {
        "models": {"judge": {"family": "remote", "build": None, "endpoint": MODEL}},
        "runtime": {"engines": {"judge": openai}},
    }
    job = open_job(
        "evaluate", "base", tmp_path, validate_params(merge_params(read_yaml(root / "params.yaml"), overlay))
    )
    spec = load_registry()["mmvet"]
    samples = [Sample(kind, f"What is {kind}?", "x", groups={"capability": ("ocr",)}) for kind in KINDS]

    def judge() -> dict[str, Any]:
        prompts = [make_judge_prompt(spec, sample, "a reply") for sample in samples]
        said = evaluate.make_ask_judge(job, job.block(Evaluate))(prompts, Sampling(temperature=0.0, max_tokens=8))
        told = {one.index: JudgeReply(one.index, "", text) for one, text in zip(samples, said, strict=True)}
        return compute_benchmark_scores(
            spec, samples, {kind: BenchmarkReply(kind, "a reply") for kind in KINDS}, OURS, said=told
        )

    return judge


def kind_of(question: str) -> str:
    return next(kind for kind in KINDS if f"What is {kind}?" in question)


def test_no_fault_of_a_judges_server_becomes_a_score(
    fake: Any, grades: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.says = lambda question, sample: {**GRADES, **WORDS}[kind_of(question)]
    fake.fault = lambda question, before: FAULTS.get(kind_of(question))
    found = grades()
    assert found["score"] == 75  # of the two grades alone
    assert found["judge_failed"] == pytest.approx(100 * (len(KINDS) - 2) / len(KINDS))
    assert not found["complete"]
    assert found["lowest"] == pytest.approx(150 / len(KINDS))
    assert f"{len(FAULTS)} of {len(KINDS)} replies have no verdict of judge" in capsys.readouterr().err

    fake.bodies.clear()
    fake.fault = lambda question, before: None
    fake.says = lambda question, sample: "1.0"
    again = grades()  # what failed is asked again, what was said stays said
    assert sorted(kind_of(body["messages"][-1]["content"]) for body in fake.bodies) == sorted(FAULTS)
    assert again["judge_failed"] == pytest.approx(100 * len(WORDS) / len(KINDS))


def test_a_judge_of_another_name_is_no_judge(fake: Any, grades: Any) -> None:
    fake.model = "somebody-else"
    fake.says = lambda question, sample: "1.0"
    found = grades()
    assert found["score"] is None
    assert found["judge_failed"] == 100

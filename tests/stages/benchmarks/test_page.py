"""The report's benchmark section: scores with what they lack, the paper's columns, time an answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages.benchmarks.registry import COLUMNS, load_registry
from stages.benchmarks.speed import SpeedMeter
from stages.config.params import load_params
from stages.job.files import write_json
from stages.job.progress import Progress
from stages.page import benchmarks
from stages.page.evaluated_models import EvaluatedModel

NUMBERS = {
    "profile": "ours",
    "style": "dataset",
    "judge": None,
    "source": "f (md5 0)",
    "units": 4,
    "error": 2.0,
    "complete": True,
}
NUMBERS |= dict.fromkeys(("unparsed", "judge_failed", "pending", "missing"), 0.0)


def model(name: str, scores: dict[str, float | None], **more: Any) -> EvaluatedModel:
    titles = {key: spec.title for key, spec in load_registry().items()} | {"tiny_number": "Tiny world, numbers"}
    found = {key: {**NUMBERS, "title": titles[key], "score": score, **more} for key, score in scores.items()}
    return EvaluatedModel(name, name, "other", {"benchmarks": found, "mean_tokens": 12.0}, {})


def test_scores_say_what_they_lack() -> None:
    models = [model("a", {"ai2d": 80.0, "mmvet": None}, judge_failed=25.0, complete=False), model("b", {"ai2d": 70.0})]
    rows = {row["title"]: row for row in benchmarks.tabulate_benchmarks(models)}
    assert list(rows) == ["AI2D (with mask)", "MM-Vet"]
    assert [cell["score"] for cell in rows["AI2D (with mask)"]["cells"]] == [80, 70]
    assert [cell["note"] for cell in rows["MM-Vet"]["cells"]] == ["25 % judge failed", ""]
    assert rows["MM-Vet"]["cells"][0]["score"] is None


def test_only_complete_columns_stand_beside_the_papers() -> None:
    every = {name: 50.0 for name, spec in load_registry().items() if spec.column and name != "mmmu_pro_vision"}
    (row,) = benchmarks.tabulate_columns([model("a", every), model("tiny", {"tiny_number": 90.0})])
    assert row["over"] == 13
    assert row["cells"][COLUMNS.index("MMMU-Pro")] is None
    assert len(benchmarks.tabulate_paper()["rows"]) == 25


def test_answers_are_counted_and_timed_without_those_that_were_stored() -> None:
    class Quiet(Progress):
        def track(self, items: Any, description: str, total: int | None = None, done: int = 0) -> Iterator[Any]:
            yield from items

    class Answer:
        completion_tokens = 5

    speed = SpeedMeter(Quiet())
    assert speed.rates == {}
    assert len(list(speed.track([Answer(), Answer()], "x", 4, 2))) == 2
    assert speed.rates["answers"] == 2
    assert speed.rates["tokens_per_second"] == pytest.approx(10 / speed.seconds, rel=0.01)


def test_times_come_from_the_untracked_file(root: Path, tmp_path: Path) -> None:
    write_json(
        tmp_path / "reports/evaluate/a/speed/timing.json",
        {"answers": 3, "milliseconds_an_answer": 7.5, "tokens_per_second": 9},
    )
    job = open_job("report", None, tmp_path, load_params(root / "params.yaml"))
    first, second = benchmarks.tabulate_speeds(job, [model("a", {}), model("b", {})])
    assert (first["answers"], first["milliseconds_an_answer"], first["tokens"]) == (3, 7.5, 12)
    assert second["answers"] is None

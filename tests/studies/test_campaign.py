"""Which run starts when, what is skipped, and what becomes of one that fails; dvc itself is in test_small.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studies.campaign import Campaign
from studies.records import StudyRecord, write_record
from studies.runs import Planner, Run
from studies.study import read_study

Make = Callable[..., Path]
ARMS = {
    "base": {"title": "Base", "evaluation": "warm_start"},
    "grpo": {"title": "GRPO", "params": {"ril": {"objective": "grpo"}}},
    "gad": {"title": "GAD", "params": {"ril": {"objective": "adversarial"}}},
}


def planned(project: Path) -> list[Run]:
    study = read_study(project, "small")
    return Planner(project, study, "small").plan_comparison(list(study.arms), study.seeds, {})


@pytest.fixture
def started(make_study: Make, tmp_path: Path) -> tuple[Campaign, list[Run], list[str]]:
    """A campaign of three arms in two worlds, and what it says."""
    seeds = [{"world": 3, "seed": 4}, {"world": 5, "seed": 4}]
    said: list[str] = []
    runs = planned(make_study(arms=ARMS, seeds=seeds, order=[], differences=[], shared=["discriminator"]))
    return Campaign(tmp_path / "project", runs, tmp_path / "results", said.append, jobs=2), runs, said


def test_a_run_waits_for_another_that_makes_what_it_needs(started: tuple[Campaign, list[Run], list[str]]) -> None:
    campaign, runs, _ = started
    first, second = campaign.next(), campaign.next()
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == (runs[0].name, runs[3].name)  # the other world's first arm
    assert campaign.next() is None
    assert campaign.left
    campaign.finish(first, 1, Path("log"))
    third = campaign.next()
    assert third is not None
    assert third.name == runs[1].name
    assert campaign.next() is None  # GAD needs the rollout that GRPO now makes


def test_a_run_starts_as_soon_as_the_shared_stages_are_made(
    started: tuple[Campaign, list[Run], list[str]],
) -> None:
    """Not with the end of the run that makes them, and not before dvc has kept the last one."""
    campaign, runs, _ = started
    campaign.waiting = runs[:2]
    first = campaign.next()
    assert first is not None
    assert first.name == runs[0].name
    common = [stage for stage, key in runs[0].stages.items() if runs[1].stages.get(stage) == key]
    for stage in common:
        assert campaign.next() is None, stage
        first.output.write(f"Running stage '{stage}':\n{stage}: done in 1.0 s; results in data\n")
    assert campaign.next() is None  # the last one is not kept yet
    first.output.write("Running stage 'evaluate@warm_start':\n")
    second = campaign.next()
    assert second is not None
    assert second.name == runs[1].name
    assert not set(common) & set(campaign.list_missing_stages(runs[1]))


def test_a_failure_is_named_and_stops_nobody(started: tuple[Campaign, list[Run], list[str]]) -> None:
    campaign, runs, said = started
    order = []
    while campaign.left:
        one = campaign.next()
        assert one is not None
        order.append(one.name)
        one.output.write("ERROR: failed to reproduce 'ril': failed to run\nno error here\n")
        campaign.finish(one, 1, Path("the.log"))
    assert sorted(order) == sorted(run.name for run in runs)
    assert set(campaign.failed) == set(order)
    assert "failed to reproduce 'ril'" in campaign.failed[runs[0].name]
    assert "the.log" in campaign.failed[runs[0].name]
    assert any("FAILED" in line and "base (world 3, seed 4)" in line for line in said)


def test_a_run_tells_each_stage_and_once_a_minute_how_far_it_is(
    started: tuple[Campaign, list[Run], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, runs, said = started
    now = [1000.0]
    monkeypatch.setattr("studies.campaign.time.monotonic", lambda: now[0])
    one = campaign.next()
    assert one is not None
    del said[:]
    one.output.write(
        "Stage 'questions' is cached - skipping run, checking out outputs\nRunning stage 'model@student':\n"
    )
    for second in range(0, 121, 15):
        now[0] = 1000.0 + second
        one.output.write(f"SFT: {second} of 240 (1/s, {240 - second} s left)\n")
    one.output.write("model@student: done in 240.0 s (231.5 core-seconds); results in data/model/student\n")
    label, stages = f"[0/{len(runs)}] {runs[0].label}", len(campaign.list_missing_stages(runs[0]))
    assert said == [
        f"{label} progress: SFT: 60 of 240 (1/s, 180 s left)",
        f"{label} progress: SFT: 120 of 240 (1/s, 120 s left)",
        f"{label} finished model@student in 4 min 00 s, stages left: {stages - 2}",
    ]
    assert one.output.core_seconds == {"model@student": 231.5}


@pytest.mark.parametrize("path", ["params.yaml", "dvc.yaml", "stages/ril.py"])
def test_nothing_is_started_with_other_files_than_were_planned(
    started: tuple[Campaign, list[Run], list[str]], tmp_path: Path, path: str
) -> None:
    campaign, runs, _ = started
    first = campaign.next()
    assert first is not None
    campaign.finish(first, 1, Path("log"))
    with (tmp_path / "project" / path).open("a") as file:
        file.write("\n# an edit while the study runs\n")
    assert campaign.next() is None
    assert campaign.moved == [path]
    assert not campaign.left
    assert len(campaign.waiting) == len(runs) - 1


def test_an_edit_that_no_run_depends_on_stops_nothing(
    started: tuple[Campaign, list[Run], list[str]], tmp_path: Path
) -> None:
    campaign, _, _ = started
    for path in ("stages/report.py", "stages/page/render.py", "README.md"):
        with (tmp_path / "project" / path).open("a") as file:
            file.write("\n# an edit\n")
    assert campaign.next() is not None
    assert not campaign.moved


def kept(run: Run, record: Callable[..., StudyRecord], **changes: Any) -> StudyRecord:
    return record(run.arm, run.seeds.world, 0.5, seed=run.seeds.seed, key=run.key, **changes)


def test_a_finished_run_is_not_run_again_and_an_outdated_one_is(
    make_study: Make, tmp_path: Path, record: Callable[..., StudyRecord]
) -> None:
    runs = planned(make_study(arms=ARMS, order=[], differences=[]))
    write_record(tmp_path / "results", kept(runs[0], record))
    write_record(tmp_path / "results", record(runs[1].arm, 3, 0.5, seed=4, key="of other parameters"))
    campaign = Campaign(tmp_path / "project", runs, tmp_path / "results", print)
    assert [run.arm for run in campaign.waiting] == ["grpo", "gad"]
    assert "model@student" not in campaign.list_missing_stages(runs[1])  # base has made it
    assert {"ril", "evaluate@ril"} <= set(campaign.list_missing_stages(runs[1]))


def test_the_estimate_counts_a_shared_stage_once(
    make_study: Make, tmp_path: Path, record: Callable[..., StudyRecord]
) -> None:
    runs = planned(make_study(arms=ARMS, order=[], differences=[]))
    campaign = Campaign(tmp_path / "project", runs, tmp_path / "results", print, jobs=1)
    assert campaign.estimate_seconds_left() is None  # nothing was ever timed here
    seconds = dict.fromkeys(runs[1].stages, 100.0) | {"evaluate@warm_start": 100.0}
    write_record(tmp_path / "results", record("other", 9, 0.5, seconds=seconds))
    campaign = Campaign(tmp_path / "project", runs, tmp_path / "results", print, jobs=1)
    stages = {key for run in runs for key in run.stages.values()}
    assert campaign.estimate_seconds_left() == pytest.approx(100 * len(stages) + 3 * 10)
    halved = Campaign(tmp_path / "project", runs, tmp_path / "results", print, jobs=2)
    assert halved.estimate_seconds_left() == pytest.approx((100 * len(stages) + 3 * 10) / 2)

"""What a run is known by, and what runs share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from studies.runs import COMPARED, TUNING, Planner, Run
from studies.study import read_study

Make = Callable[..., Path]
SEEDS = [{"world": 3, "seed": 4}, {"world": 3, "seed": 5}, {"world": 6, "seed": 4}]
SWEEP = {"sweep": {"ril.learning_rate": [1e-4, 2e-4]}, "tuning": [{"world": 1, "seed": 1}]}


def planner(project: Path) -> Planner:
    return Planner(project, read_study(project, "small"), "small")


def compared(project: Path) -> dict[tuple[str, int, int], Run]:
    study = read_study(project, "small")
    runs = planner(project).plan_comparison(list(study.arms), study.seeds, {})
    return {(run.arm, run.seeds.world, run.seeds.seed): run for run in runs}


def test_seeds_of_training_share_models_teachers_and_verdicts_worlds_share_nothing(make_study: Make) -> None:
    runs = compared(make_study(seeds=SEEDS))
    first, other_seed, other_world = runs["gad", 3, 4], runs["gad", 3, 5], runs["gad", 6, 4]
    same = {stage for stage, key in first.stages.items() if other_seed.stages[stage] == key}
    made = {
        "model@student",
        "model@internvl3",
        "model@judge",
        "questions",
        "selection",
        "teacher@internvl3",
        "verdict@internvl3",
        "pool",
    }
    assert same == made
    assert not set(first.stages.values()) & set(other_world.stages.values())


def test_arms_of_a_seed_share_what_comes_before_them(make_study: Make) -> None:
    runs = compared(make_study())
    warm_start, gad = runs["warm_start", 3, 4], runs["gad", 3, 4]
    assert warm_start.targets == ("evaluate@warm_start",)
    assert set(warm_start.stages) == {"model@student", "model@judge", "questions", "warm_start", "evaluate@warm_start"}
    assert {stage for stage in warm_start.stages if stage in gad.stages} == set(warm_start.stages) - {
        "evaluate@warm_start"
    }
    assert all(gad.stages[stage] == key for stage, key in warm_start.stages.items() if stage in gad.stages)
    assert list(gad.stages).index("ril") > list(gad.stages).index("discriminator") > list(gad.stages).index("rollout")


def test_the_sweep_never_reads_the_test_split(make_study: Make) -> None:
    project = make_study(**SWEEP)
    runs = planner(project).plan_tuning(["warm_start", "gad"], read_study(project, "small").tuning)
    assert [(run.arm, dict(run.swept)) for run in runs] == [
        ("gad", {"ril.learning_rate": rate}) for rate in (1e-4, 2e-4)
    ]
    assert all(run.targets == ("ril",) and not [stage for stage in run.stages if "evaluate" in stage] for run in runs)
    one, other = runs
    assert [stage for stage in one.stages if one.stages[stage] != other.stages[stage]] == ["ril"]
    assert one.name != other.name
    assert one.file == f"{TUNING}/gad-0.0001-w1-s1"


@pytest.mark.slow
def test_further_targets_are_made_on_the_way_and_change_nothing(make_study: Make) -> None:
    plain, more = compared(make_study()), compared(make_study(name="more", shared=["discriminator"], beside=["pool"]))
    one, other = plain["warm_start", 3, 4], more["warm_start", 3, 4]
    assert other.targets == ("discriminator", "pool", "evaluate@warm_start")
    assert more["gad", 3, 4].targets == ("pool", "evaluate@ril")
    assert one.key == other.key
    assert "discriminator" in other.stages


@pytest.mark.parametrize(
    ("file", "change", "changed"),
    [
        ("params.yaml", lambda text: text.replace("samples: 12", "samples: 13"), False),  # of the report
        ("stages/page/plots.py", lambda text: text + "\n", False),
        ("flows/cli/main.py", lambda text: text + "\n", False),
        ("stages/policy/rewards.py", lambda text: text + "\n# words\n", False),
        ("stages/policy/rewards.py", lambda text: text + "\n_CODE = 1\n", True),
        ("stages/ril.py", lambda text: text + "\n_CODE = 1\n", True),
        (
            "params.yaml",
            lambda text: text.replace("discriminator_learning_rate: 0.0001", "discriminator_learning_rate: 0.001"),
            True,
        ),
    ],
)
def test_a_run_is_known_by_what_decides_its_result(
    make_study: Make, file: str, change: Callable[[str], str], changed: bool
) -> None:
    project = make_study()
    before = compared(project)["gad", 3, 4]
    text = (project / file).read_text()
    (project / file).write_text(change(text))
    after = compared(project)["gad", 3, 4]
    assert (after.key != before.key) == changed
    assert (after.name != before.name) == changed
    assert after.file == before.file == f"{COMPARED}/gad-w3-s4"


def test_overrides_make_the_parameters_of_the_run(make_study: Make) -> None:
    run = compared(make_study(params={"ril": {"samples_per_step": 3}}))["gad", 3, 4]
    assert set(run.overrides) == {"seed=4", "world.seed=3", "ril.objective=adversarial", "+ril.samples_per_step=3"}

"""The files studies/*.yaml, and the mistakes that are rejected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.params import validate_params
from stages.config.yaml import ParamsError, read_yaml
from studies.faults import list_faulty_teachers
from studies.runs import Planner
from studies.study import Study, check_budgets, find_alike, list_studies, make_values, read_study

SWEEP = {"ril.learning_rate": [1e-4, 2e-4]}


def test_every_study_can_be_run_and_gives_all_arms_the_same_budget(root: Path) -> None:
    found = list_studies(root)
    assert {"figure1", "switches"} <= set(found)
    for name in found:
        study = read_study(root, name)
        budget = check_budgets(root, study)
        assert budget["rows_per_question"] == 8
        params = [validate_params(make_values(root, study, arm, study.seeds[0])) for arm in study.arms.values()]
        assert len({str(one.world) for one in params}) == 1
        assert len({str(one.models) for one in params}) == 1


def test_the_switches_depart_from_literal_ril_one_at_a_time(root: Path) -> None:
    study = read_study(root, "switches")
    assert find_alike(root, "figure1") == ["faulty_teachers", *(f"table5{letter}" for letter in "abcde")]
    assert find_alike(root, "switches") == []
    literal = validate_params(make_values(root, study, study.arms["ril"], study.seeds[0])).objective
    for name, arm in study.arms.items():
        own = validate_params(make_values(root, study, arm, study.seeds[0]))
        changed = [key for key, value in vars(literal).items() if value != getattr(own.objective, key)]
        changed += [] if own.discriminator.sees == "response" else ["sees"]
        assert len(changed) == (0 if name == "ril" or not arm.trained else 1), (name, changed)


def test_the_control_imitates_and_nothing_else(root: Path) -> None:
    study, switches = read_study(root, "imitation"), read_study(root, "switches")
    assert (study.seeds, study.sweep) == (switches.seeds, switches.sweep)
    assert all(study.arms[name] == switches.arms[name] for name in ("warm_start", "ril", "teacher_sft"))
    found = {name: validate_params(make_values(root, study, study.arms[name], study.seeds[0])) for name in study.arms}
    for name in ("no_discriminator", "imitation_alone"):
        objective = found[name].objective
        assert (objective.teacher_rows, objective.similarity_weight, objective.uses_discriminator) == ("sft", 0, False)
    assert (found["no_discriminator"].ril.teacher_weight, found["imitation_alone"].ril.teacher_weight) == (1, 1000)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"order": [["warm_start"], ["gat"]]}, "no arm 'gat'; arms: warm_start, gad"),
        ({"differences": [["gad"]]}, "`differences` and `primary` hold pairs"),
        ({"tuning": [{"world": 3, "seed": 9}]}, "world 3 is in `tuning` and in `seeds`"),
        ({"seeds": [{"world": 3, "seed": 4}] * 2}, "one pair twice"),
        ({"sweep": SWEEP}, "`tuning` has no seeds"),
        ({"seeds": []}, "seeds"),
        ({"titel": "x"}, "titel"),
        ({"primary": [["gad", "gat"]]}, "no arm 'gat'"),
        ({"claim": {"text": "x", "pairs": [["gad", "warm_start"]]}}, "which is not in `primary`"),
        ({"best_of": {"best": {"title": "Best", "arms": ["gat"]}}}, "no arm 'gat'"),
        ({"take": {"figure1": ["gat"]}}, "no arm 'gat'"),
    ],
)
def test_a_mistake_is_named(make_study: Callable[..., Path], changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ParamsError) as error:
        read_study(make_study(**changes), "small")
    assert complaint in str(error.value)


def test_an_unknown_study_is_answered_with_the_list(make_study: Callable[..., Path]) -> None:
    with pytest.raises(ParamsError, match="no study 'big'; there are: small"):
        read_study(make_study(), "big")


@pytest.mark.parametrize("params", [{"ril": {"steps": 3}}, {"ril": {"objective": "dr_grpo", "group": 1}}])
def test_another_budget_is_refused(
    make_study: Callable[..., Path], small_study: dict[str, Any], params: dict[str, Any]
) -> None:
    arms = {**small_study["arms"], "other": {"title": "Other", "params": params}}
    project = make_study(arms=arms)
    with pytest.raises(ParamsError, match=r"arm other: .* need an equal budget"):
        check_budgets(project, read_study(project, "small"))


def test_values_are_laid_over_each_other_arm_last_seeds_above_all(make_study: Callable[..., Path]) -> None:
    arm = {"title": "x", "params": {"ril": {"steps": 3}, "seed": 8}}
    project = make_study(arms={"a": arm, "b": arm}, order=[], differences=[], params={"ril": {"steps": 4, "group": 1}})
    study: Study = read_study(project, "small")
    values = make_values(project, study, study.arms["a"], study.seeds[0])
    assert (values["ril"]["steps"], values["ril"]["group"], values["seed"], values["world"]["seed"]) == (3, 1, 4, 3)


def test_arms_of_another_budget_are_compared_among_themselves(
    make_study: Callable[..., Path], small_study: dict[str, Any]
) -> None:
    long = {"title": "Long", "params": {"ril": {"objective": "adversarial"}}, "budget": "long", "rate_of": "gad"}
    budgets = {"long": {"ril": {"steps": 4}}}
    arms = {**small_study["arms"], "long": long}
    project = make_study(arms=arms, budgets=budgets, sweep=SWEEP, tuning=[{"world": 9, "seed": 9}])
    study = read_study(project, "small")
    assert check_budgets(project, study)["steps"] == 2
    assert make_values(project, study, study.arms["long"], study.seeds[0])["ril"]["steps"] == 4
    assert [study.is_swept(name) for name in ("warm_start", "gad", "long")] == [False, True, True]
    assert [study.is_tuned(name) for name in ("gad", "long")] == [True, False]
    other = {**long, "params": {"ril": {"objective": "adversarial", "group": 1}}, "rate_of": "gad"}
    project = make_study("other", arms={**arms, "other": other}, budgets=budgets)
    with pytest.raises(ParamsError, match="arm other: rows_per_question is 1, that of long is 2"):
        check_budgets(project, read_study(project, "small"))


def test_a_repetition_may_change_parameters_of_every_arm(make_study: Callable[..., Path]) -> None:
    faults = {"models": {"internvl3": {"build": {"styles": {"arrows": 1.0}, "confuses": [[1, 8]]}}}}
    project = make_study(seeds=[{"world": 3, "seed": 4}, {"world": 5, "seed": 4, "params": faults}])
    study = read_study(project, "small")
    builds = [
        make_values(project, study, study.arms["gad"], seeds)["models"]["internvl3"]["build"] for seeds in study.seeds
    ]
    assert ["confuses" in build for build in builds] == [False, True]


def test_both_regimes_have_the_same_arms_and_share_judge_student_and_questions(root: Path) -> None:
    figure1, faulty = read_study(root, "figure1"), read_study(root, "faulty_teachers")
    assert (faulty.arms, faulty.primary, faulty.sweep) == (figure1.arms, figure1.primary, figure1.sweep)
    assert [(one.world, one.seed) for one in faulty.seeds] == [(one.world, one.seed) for one in figure1.seeds]
    assert len(figure1.seeds) == 10
    assert len(figure1.tuning) >= 3
    assert all(len(values) >= 4 for values in figure1.sweep.values())
    plans = [
        Planner(root, study, name).plan_comparison(["ril"], study.seeds[:1], {})[0]
        for name, study in (("figure1", figure1), ("faulty_teachers", faulty))
    ]
    same = {stage for stage, key in plans[0].stages.items() if plans[1].stages[stage] == key}
    assert same == {"model@student", "model@judge", "questions", "warm_start"}
    for seeds, honest in zip(faulty.seeds, figure1.seeds, strict=True):
        own = validate_params(make_values(root, faulty, faulty.arms["ril"], seeds))
        assert {name: tuple(pairs) for name, pairs in honest.faults.items()} == list_faulty_teachers(own)
    for seeds in [*faulty.seeds, *faulty.tuning]:
        models = validate_params(make_values(root, faulty, faulty.arms["ril"], seeds)).models
        pairs = [models[name].build.confuses for name in ("qwen2_5_vl", "internvl3")]  # type: ignore[union-attr]
        assert all(pairs)
        assert pairs[0] != pairs[1]


def test_arms_named_after_something_are_that(root: Path) -> None:
    study = read_study(root, "figure1")
    found = {name: validate_params(make_values(root, study, study.arms[name], study.seeds[0])) for name in study.arms}
    recommended = read_yaml(root / "profiles" / "recommended.yaml")
    assert study.arms["recommended"].params == recommended
    right, every = found["imitation_right"], found["imitation_all"]
    assert (right.pool.wrong, every.pool.wrong) == ("drop", "keep")
    for one in (right, every):
        assert (one.objective.imitates, one.objective.teacher_weight, one.ril.kl_weight) == (True, 1, 0.01)
    for name, arm in study.arms.items():
        if arm.budget:
            assert arm.params == study.arms[arm.rate_of or ""].params, name


def test_the_ablation_changes_one_thing_of_ril_and_takes_the_rest_from_faulty_teachers(root: Path) -> None:
    study, faulty = read_study(root, "ablation"), read_study(root, "faulty_teachers")
    assert study.seeds == faulty.seeds[: len(study.seeds)]
    for other, names in study.take.items():
        there = read_study(root, other)
        for name in names:
            own = validate_params(make_values(root, study, study.arms[name], study.seeds[0]))
            its = validate_params(make_values(root, faulty, there.arms[name], study.seeds[0]))
            assert own == its, name
    literal = validate_params(make_values(root, study, study.arms["ril"], study.seeds[0]))
    for name in study.arms:
        if study.is_swept(name) and name not in study.borrowed:
            assert study.arms[name].rate_of == "ril"
            own = validate_params(make_values(root, study, study.arms[name], study.seeds[0]))
            assert own != literal

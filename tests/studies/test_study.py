"""The files studies/*.yaml, and the mistakes that are rejected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.params import validate_params
from stages.config.yaml import ParamsError
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
    assert find_alike(root, "switches") == ["imitation"]
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
        ({"differences": [["gad"]]}, "`differences` holds pairs"),
        ({"tuning": [{"world": 3, "seed": 9}]}, "world 3 is in `tuning` and in `seeds`"),
        ({"seeds": [{"world": 3, "seed": 4}] * 2}, "one pair twice"),
        ({"sweep": SWEEP}, "`tuning` has no seeds"),
        ({"seeds": []}, "seeds"),
        ({"titel": "x"}, "titel"),
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

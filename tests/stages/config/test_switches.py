"""Switches of the objective: what each name sets, and that contradictions are refused in one line with key, value and
remedy.
"""

from pathlib import Path
from typing import Any

import pytest

from stages.config.params import load_params, validated
from stages.config.switches import OBJECTIVES, PAPER, DiscriminatorSwitches, Objective, Switches
from stages.config.yaml import ParamsError, merged, read_yaml


def test_the_papers_values_are_the_defaults(root: Path) -> None:
    assert Switches().resolved(DiscriminatorSwitches()) == PAPER == Objective()
    assert load_params(root / "params.yaml").objective == PAPER
    assert (PAPER.teacher_rows, PAPER.baseline, PAPER.similarity, PAPER.similarity_gate) == (
        "as_student",
        "joint",
        "binary",
        "none",
    )
    assert (PAPER.scale_rewards, PAPER.loss_normaliser, PAPER.kl, PAPER.clip_low, PAPER.clip_high) == (
        "none", "constant", "k3", 0.2, 0.2,
    )  # fmt: skip
    assert (PAPER.discriminator_loss, PAPER.discriminator_update) == ("bce", "before_scoring")
    assert Switches().kl_weight == 0.01


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_one_switch_makes_every_objective(root: Path, name: str) -> None:
    params = validated(merged(read_yaml(root / "params.yaml"), {"ril": {"objective": name}}))
    assert params.objective == OBJECTIVES[name]
    assert params.objective.discriminated == (name in ("ril", "gad"))
    assert params.objective.judged == (name not in ("gad", "sft"))


def test_a_given_value_goes_before_that_of_the_objective() -> None:
    found = Switches(objective="gad", similarity="soft", clip_epsilon_high=0.28).resolved(
        DiscriminatorSwitches(loss="bce")
    )
    assert (found.similarity, found.discriminator_loss, found.clip_high, found.teacher_rows) == (
        "soft",
        "bce",
        0.28,
        "none",
    )


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {"update": "none"}, ["ril.similarity_weight is 1", "set ril.similarity_weight to 0"]),
    ({"objective": "dr_grpo", "similarity_weight": 1.0}, {}, ["'dr_grpo'", "set ril.similarity_weight"]),
    ({"similarity_weight": 0.0}, {},
     ["ril.similarity_weight is 0", "'before_scoring'", "set discriminator.update to none"]),
    ({"objective": "dr_grpo"}, {"update": "frozen"},
     ["discriminator.update is 'frozen'", "set discriminator.update to none"]),
    ({"similarity_weight": 0.0, "answer_weight": 0.0}, {"update": "none"},
     ["ril.answer_weight is 0", "raise one of them"]),
    ({"objective": "dr_grpo", "similarity": "soft"}, {}, ["ril.similarity 'soft'", ("ril.similarity_weight is "
                                                                                    "0"), "raise it"]),
    ({"objective": "dr_grpo", "similarity_gate": "when_correct"}, {}, [("ril.similarity_gate is "
                                                                        "'when_correct'"), "raise it"]),
    ({"objective": "gad", "similarity_gate": "when_correct"}, {}, ["is 'when_correct'", "set ril.similarity_gate"]),
    ({"teacher_rows": "when_all_wrong", "answer_weight": 0.0}, {}, ["'when_all_wrong'", "set ril.teacher_rows"]),
    ({"clip_epsilon_high": 0.1}, {}, ["ril.clip_epsilon_high is 0.1", "ril.clip_epsilon (0.2)", "raise it"]),
    ({"baseline": "per_source", "teacher_rows": "none"}, {}, ["ril.baseline is 'per_source'", ("set ril.baseline "
                                                                                               "to joint")]),
    ({"baseline": "per_source", "objective": "grpo"}, {}, ["ril.teacher_rows 'none'", "set ril.baseline to joint"]),
    ({"baseline": "per_reward", "answer_weight": 0.0}, {}, ["ril.baseline is 'per_reward'", ("set ril.baseline to "
                                                                                             "joint")]),
    ({"baseline": "per_reward", "scale_rewards": "group"}, {}, ["ril.scale_rewards is 'group'", "remove it"]),
    ({"objective": "dr_grpo", "kl_on_teacher_rows": "k2"}, {}, ["ril.kl_on_teacher_rows is 'k2'", "set it to same"]),
    ({"kl_weight": 0.0, "kl": "full"}, {}, ["ril.kl is 'full'", "ril.kl_weight is 0", "raise it"]),
    ({"teacher_weight": 0.5}, {}, ["ril.teacher_weight is 0.5", "'as_student'", "remove it"]),
    ({"luffy_gamma": 0.2}, {}, ["ril.luffy_gamma is 0.2", "not 'luffy'", "remove it"]),
    ({"objective": "sft", "teacher_rows": "as_student"}, {}, ["ril.objective is 'sft'", "remove them"]),
    ({"objective": "gad", "teacher_rows": "sft"}, {}, ["ril.teacher_rows is 'sft'", "'raw'", "set it to soft"]),
    ({"objective": "grpo", "ratio": "sequence"}, {}, ["ril.ratio is 'sequence'", ("set ril.loss_normaliser to "
                                                                                  "constant")]),
    (
        {"rollout_correction": "mask_token", "sampling": {"temperature": 0.5}},
        {},
        ["ril.rollout_correction is 'mask_token'", "ril.sampling.temperature is 0.5"],
    ),
    ({"rollout_cap": 2.0}, {}, ["ril.rollout_cap is 2", "'none'", "remove it"]),
    ({"objective": "dr_grpo"}, {"sees": "question"}, ["discriminator.sees is 'question'", "set it to response"]),
]  # fmt: skip


@pytest.mark.parametrize(("ril", "discriminator", "parts"), CONTRADICTIONS)
def test_contradictions_are_refused_at_load(
    root: Path, ril: dict[str, Any], discriminator: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ParamsError) as caught:
        validated(merged(read_yaml(root / "params.yaml"), {"ril": ril, "discriminator": discriminator}))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


AGREEING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"teacher_rows": "luffy", "luffy_gamma": 0.2}, {}),
    ({"teacher_rows": "sft", "teacher_weight": 0.5, "similarity_gate": "when_correct"}, {}),
    ({"baseline": "per_source"}, {"update": "frozen"}),
    ({"baseline": "per_reward", "kl": "full", "kl_on_teacher_rows": "k2"}, {"sees": "question_and_image"}),
    ({"similarity_weight": 0.0}, {"update": "none"}),
    ({"objective": "gad", "teacher_rows": "as_student"}, {}),
    ({"ratio": "sequence", "inner_updates": 4, "clip_epsilon_high": 0.28}, {}),
    ({"rollout_correction": "truncate_token", "rollout_cap": 2.0}, {}),
]


@pytest.mark.parametrize(("ril", "discriminator"), AGREEING)
def test_switches_that_agree_are_accepted(root: Path, ril: dict[str, Any], discriminator: dict[str, Any]) -> None:
    validated(merged(read_yaml(root / "params.yaml"), {"ril": ril, "discriminator": discriminator}))

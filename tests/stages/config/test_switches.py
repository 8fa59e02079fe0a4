"""Switches of the objective: what each name sets, and that contradictions are refused in one line with key, value and
remedy.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import asdict, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import Field, TypeAdapter, create_model

from flows.digest import digest_file
from flows.objectives import PAGE, Declared, update_sections
from stages.config.baselines import BASELINES, ObjectiveName
from stages.config.block import Block
from stages.config.discriminator import Discriminator, DiscriminatorObjective, DiscriminatorSwitches
from stages.config.objective import PAPER, Objective
from stages.config.own_rewards import Reward
from stages.config.params import load_params, validate_params
from stages.config.ril import Ril, Switches
from stages.config.switch import (
    Choices,
    Declaration,
    Switch,
    list_contradictions,
    list_switches,
    read_choices,
    resolve_switches,
)
from stages.config.yaml import ParamsError, merge_params, read_yaml

PAPERS = {
    "references": False,
    "imitates": False,
    "distils": False,
    "teacher_rows": "as_student",
    "teacher_weight": 1.0,
    "luffy_gamma": 0.1,
    "baseline": "joint",
    "scale_rewards": "none",
    "similarity": "binary",
    "similarity_weight": 1.0,
    "answer_weight": 1.0,
    "answer_by": "judge",
    "similarity_gate": "none",
    "functions": (),
    "zero_variance": "keep",
    "truncated": "wrong",
    "failed_verdicts": "drop_row",
    "loss_normaliser": "constant",
    "ratio": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "kl": "k3",
    "kl_on_teacher_rows": "same",
    "rollout_correction": "none",
    "rollout_cap": 3.0,
    "discriminator_loss": "bce",
    "discriminator_update": "before_scoring",
    "degenerate": "unrewarded",
    "negatives": 2,
}
JUDGE_ALONE = {"teacher_rows": "none", "similarity_weight": 0.0, "discriminator_update": "none"}
OBJECTIVES: dict[Any, dict[str, Any]] = {
    "ril": {},
    "dr_grpo": JUDGE_ALONE,
    "grpo": {**JUDGE_ALONE, "scale_rewards": "group", "loss_normaliser": "row"},
    "adversarial": {
        "teacher_rows": "none",
        "similarity": "raw",
        "answer_weight": 0.0,
        "scale_rewards": "group",
        "loss_normaliser": "row",
        "discriminator_loss": "bradley_terry",
        "discriminator_update": "after_scoring",
        "degenerate": "learned",
        "negatives": 0,
    },
    "sft": {"teacher_rows": "sft", "similarity_weight": 0.0, "discriminator_update": "none", "references": True},
    "imitation": {
        "teacher_rows": "sft",
        "similarity_weight": 0.0,
        "discriminator_update": "none",
        "imitates": True,
    },
    "opd": {**JUDGE_ALONE, "answer_weight": 0.0, "distils": True},
}
NAMES = list(list_switches(Objective))


@cache
def values_of(root: Path) -> dict[str, Any]:
    return read_yaml(root / "params.yaml")


def test_the_papers_values_are_the_defaults(root: Path) -> None:
    assert asdict(PAPER) == PAPERS
    assert Switches().resolve(DiscriminatorSwitches()) == PAPER
    assert load_params(root / "params.yaml").objective == PAPER
    assert Switches().kl_weight == 0.01


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_one_switch_makes_every_objective(root: Path, name: str) -> None:
    params = validate_params(merge_params(values_of(root), {"ril": {"objective": name}}))
    assert params.objective == replace(PAPER, **OBJECTIVES[name])
    assert params.objective.uses_discriminator == (name in ("ril", "adversarial"))
    assert params.objective.uses_judge == (name not in ("adversarial", "sft", "imitation", "opd"))
    assert params.discriminator.resolve(params.ril.objective) == DiscriminatorObjective(
        **{name: getattr(params.objective, name) for name in list_switches(DiscriminatorObjective)}
    )


def test_a_given_value_goes_before_that_of_the_objective() -> None:
    found = Switches(objective="adversarial", similarity="soft", clip_epsilon_high=0.28).resolve(
        DiscriminatorSwitches(loss="bce")
    )
    assert (found.similarity, found.discriminator_loss, found.clip_high, found.teacher_rows) == (
        "soft",
        "bce",
        0.28,
        "none",
    )


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"objective": "dr_grpo"}, {"degenerate": "learned"},
     ["discriminator.degenerate is 'learned'", "set it to unrewarded"]),
    ({"objective": "dr_grpo"}, {"negatives": 2}, ["discriminator.negatives is 2", "remove it"]),
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
    ({"objective": "adversarial", "similarity_gate": "when_correct"}, {},
     ["is 'when_correct'", "set ril.similarity_gate"]),
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
    ({"objective": "imitation", "answer_weight": 0.0}, {},
     ["ril.objective is 'imitation'", "ril.answer_weight 0", "remove them"]),
    ({"objective": "adversarial", "teacher_rows": "sft"}, {}, ["ril.teacher_rows is 'sft'", "'raw'", "set it to soft"]),
    ({"objective": "grpo", "ratio": "sequence"}, {}, ["ril.ratio is 'sequence'", ("set ril.loss_normaliser to "
                                                                                  "constant")]),
    (
        {"rollout_correction": "mask_token", "sampling": {"temperature": 0.0}},
        {},
        ["ril.rollout_correction is 'mask_token'", "ril.sampling.temperature is 0", "raise it"],
    ),
    ({"objective": "adversarial", "answer_by": "parsing"}, {},
     ["ril.answer_by is 'parsing'", "'adversarial'", "remove it"]),
    ({"answer_weight": 0.0, "answer_by": "parsing"}, {}, ["ril.answer_weight 0 has no answer reward", "remove it"]),
    ({"rollout_cap": 2.0}, {}, ["ril.rollout_cap is 2", "'none'", "remove it"]),
    ({"rewards": [{"use": "length"}], "teacher_rows": "sft"}, {},
     ["ril.rewards has 'length'", "ril.teacher_rows is 'sft'", "remove one of them"]),
    ({"rewards": [{"use": "length", "gate": "when_correct"}], "answer_weight": 0.0}, {},
     ["gate of 'length' is 'when_correct'", "ril.answer_weight is 0", "set gate to none"]),
    ({"objective": "opd", "teacher_rows": "as_student"}, {},
     ["ril.objective is 'opd'", "ril.teacher_rows is 'as_student'", "remove it"]),
    ({"objective": "opd", "sampling": {"temperature": 0.0}}, {},
     ["'opd'", "ril.sampling.temperature is 0", "raise it"]),
    ({"objective": "opd", "zero_variance": "drop"}, {}, ["'opd'", "ril.zero_variance is 'drop'", "set it to keep"]),
    ({"objective": "opd", "ratio": "sequence"}, {}, ["ril.ratio is 'sequence'", "'opd'", "set ril.ratio to token"]),
    ({"objective": "dr_grpo"}, {"sees": "question"}, ["discriminator.sees is 'question'", "set it to response"]),
]  # fmt: skip


@pytest.mark.parametrize(("ril", "discriminator", "parts"), CONTRADICTIONS)
def test_contradictions_are_refused_at_load(
    root: Path, ril: dict[str, Any], discriminator: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(merge_params(values_of(root), {"ril": ril, "discriminator": discriminator}))
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
    ({"objective": "adversarial", "teacher_rows": "as_student"}, {}),
    ({"ratio": "sequence", "inner_updates": 4, "clip_epsilon_high": 0.28}, {}),
    ({"rollout_correction": "truncate_token", "rollout_cap": 2.0}, {}),
    ({"answer_by": "parsing", "similarity_gate": "when_correct"}, {}),
    ({"rollout_correction": "mask_sequence", "sampling": {"temperature": 0.5}}, {}),
    ({"rewards": [{"use": "length"}], "baseline": "per_reward", "answer_weight": 0.0}, {}),
    ({"rewards": [{"use": "length"}], "similarity_weight": 0.0, "answer_weight": 0.0}, {"update": "none"}),
    ({"objective": "opd", "answer_weight": 1.0, "kl_weight": 0.0, "ratio": "gspo"}, {}),
    ({"objective": "opd", "rewards": [{"use": "length"}]}, {}),
    ({"rewards": [{"use": "format", "gate": "when_correct", "arguments": {"pattern": "x"}}]}, {}),
]


@pytest.mark.parametrize(("ril", "discriminator"), AGREEING)
def test_switches_that_agree_are_accepted(root: Path, ril: dict[str, Any], discriminator: dict[str, Any]) -> None:
    validate_params(merge_params(values_of(root), {"ril": ril, "discriminator": discriminator}))


# --- one declaration a switch -----------------------------------------------------------------------------------------


def other_value(one: Declaration) -> Any:
    """A value of the switch that is not its default."""
    if get_origin(one.type) is Literal:
        return next(value for value in get_args(one.type) if value != one.default)
    if one.type is bool:
        return not one.default
    if isinstance(one.default, tuple):
        return (Reward(use="length"),)
    return one.default + 1 if one.type is int else one.default + 0.25


@pytest.mark.parametrize("name", [name for name in NAMES if list_switches(Objective)[name].switch.key])
def test_a_value_in_params_yaml_is_that_of_the_objective(name: str) -> None:
    """Whatever the objective has; no other switch moves, but those that say so."""
    one = list_switches(Objective)[name]
    assert one.switch.key is not None
    block, _, key = one.switch.key.partition(".")
    value = other_value(one)
    for objective, preset in OBJECTIVES.items():
        ril = Switches(objective=objective, **({key: value} if block == "ril" else {}))
        found = ril.resolve(DiscriminatorSwitches(**({key: value} if block == "discriminator" else {})))
        like = {other.name: value for other in list_switches(Objective).values() if other.switch.like == one.switch.key}
        assert asdict(found) == {**PAPERS, **preset, **like, name: value}


def test_a_switch_that_may_be_left_out_says_what_it_is_then() -> None:
    for one in list_switches(Objective).values():
        if one.switch.key is not None:
            assert ("If not set: " in (one.info.description or "")) == one.optional, one.name


def test_every_other_value_has_a_reason() -> None:
    for one in list_switches(Objective).values():
        if get_origin(one.type) is Literal:
            reasons = [value for departure in one.switch.departures for value in departure.values]
            assert sorted(reasons) == sorted(set(get_args(one.type)) - {one.default}), one.name


def test_every_objective_is_described_and_gives_values_that_params_yaml_could_hold() -> None:
    assert tuple(BASELINES) == get_args(ObjectiveName)
    for one in list_switches(Objective).values():
        for name, value in one.switch.presets.items():
            assert name in BASELINES
            assert TypeAdapter(one.type).validate_python(value, strict=True) == value != one.default


def test_every_rule_is_marked_and_says_what_it_holds_to() -> None:
    rules = list(list_contradictions(Objective))
    methods = [value for part in Objective.__mro__ for value in vars(part).values() if inspect.isfunction(value)]
    assert set(rules) == {one for one in methods if not one.__name__.startswith("__") and one.__name__[0] == "_"}
    assert all(rule.__doc__ for rule in rules)


# What the readers of an objective or a block are called in stages/, flows/ and studies/.
READERS = {"objective", "block", "loop"}


@cache
def reads(root: Path) -> dict[str, set[str]]:
    """The attributes that code outside stages/config reads, by what it reads them from."""
    found: dict[str, set[str]] = {name: set() for name in READERS}
    files = [path for folder in ("stages", "flows", "studies") for path in (root / folder).rglob("*.py")]
    for path in files:
        if not path.is_relative_to(root / "stages" / "config"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and (reader := last_name(node.value)) in READERS:
                    found[reader].add(node.attr)
    return found


def last_name(node: ast.expr) -> str:
    """`objective` of `self._objective`, `block` of `job.block(Ril)`."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.removeprefix("_")


def complaints(root: Path, declared: Declared) -> set[str]:
    """Which of the checks find something wrong with these declarations."""
    return {name for name, found in problems(root, declared) if found}


def problems(root: Path, declared: Declared) -> Iterator[tuple[str, object]]:
    page, kind, read = (root / PAGE).read_text(), declared.objective, reads(root)
    own = {name for block in (declared.ril, declared.discriminator) for name in unresolved(block)}
    yield "page", update_sections(page, declared) != page
    yield "nothing reads it", {*list_switches(kind)} - read["objective"] or own - read["block"] - read["loop"]
    yield "nothing declares it", [name for name in read["objective"] if not hasattr(kind, name)]
    nothing = Choices({one.switch.key: None for one in list_switches(kind).values()}, frozenset())
    values = {name: asdict(resolve_switches(kind, name, nothing)) for name in OBJECTIVES}
    yield "presets", values != {name: {**PAPERS, **preset} for name, preset in OBJECTIVES.items()}
    yield "contradictions", [parts for ril, _, parts in CONTRADICTIONS if not refused(kind, ril, _, parts)]


def unresolved(block: type[Block]) -> list[str]:
    """The switches that are read from the block as they are."""
    switches = {
        name: [one for one in info.metadata if isinstance(one, Switch)] for name, info in block.model_fields.items()
    }
    return [name for name, found in switches.items() if found and found[0].key is None]


BASE: dict[str, Any] = {"steps": 1, "learning_rate": 0.1}


def refused(kind: Any, ril: dict[str, Any], discriminator: dict[str, Any], parts: list[str]) -> bool:
    """Whether one of the rules of `kind` refuses these values with a line that has all the parts."""
    loop = Ril(**{**BASE, "sampling": {}, **ril})
    given = read_choices(ril=loop, discriminator=Discriminator(**{**BASE, **discriminator}))
    lines = [rule(resolve_switches(kind, loop.objective, given), given) or "" for rule in list_contradictions(kind)]
    return any(all(part in line for part in parts) for line in lines)


def rebuilt(drop: str = "", preset: tuple[str, str] = ("", ""), rule: str = "") -> Any:
    """`Objective` without a switch, without one value of an objective, or without a rule."""
    fields: list[Any] = []
    for one in list_switches(Objective).values():
        presets = {name: value for name, value in one.switch.presets.items() if (one.name, name) != preset}
        hint = Annotated[one.type, one.info, replace(one.switch, presets=presets)]
        fields += [(one.name, hint, one.default)] if one.name != drop else []
    rules = {one.__name__: one for one in list_contradictions(Objective) if one.__name__ != rule}
    properties = {name: value for name, value in inspect.getmembers(Objective) if isinstance(value, property)}
    return make_dataclass("Objective", fields, namespace={**rules, **properties}, frozen=True)


def block_without(block: type[Block], key: str) -> type[Block]:
    fields: Any = {name: (info.annotation, info) for name, info in block.model_fields.items() if name != key}
    return create_model(block.__name__, __base__=Block, **fields)


def test_no_declaration_is_wrong(root: Path) -> None:
    assert complaints(root, Declared()) == set()
    assert complaints(root, Declared(objective=rebuilt())) == set()


@pytest.mark.parametrize("name", NAMES)
def test_no_switch_can_be_left_out(root: Path, name: str) -> None:
    key = (list_switches(Objective)[name].switch.key or "").partition(".")[2]
    kind, ril, discriminator = rebuilt(drop=name), block_without(Ril, key), block_without(Discriminator, key)
    declared = Declared(kind, ril, discriminator)
    page = (root / PAGE).read_text()
    assert update_sections(page, declared) != page
    assert not hasattr(kind, name)
    assert name in reads(root)["objective"]


@pytest.mark.parametrize("name", [*unresolved(Ril), *unresolved(Discriminator)])
def test_no_switch_of_a_block_can_be_left_out(root: Path, name: str) -> None:
    declared = Declared(ril=block_without(Ril, name), discriminator=block_without(Discriminator, name))
    assert complaints(root, declared) == {"page"}
    assert name in reads(root)["block"] | reads(root)["loop"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", list(BASELINES))
def test_no_value_of_an_objective_can_be_left_out(root: Path, name: str, objective: str) -> None:
    given = objective in list_switches(Objective)[name].switch.presets
    found = complaints(root, Declared(objective=rebuilt(preset=(name, objective))))
    assert found >= {"page", "presets"} if given else found == set()


@pytest.mark.parametrize("rule", [rule.__name__ for rule in list_contradictions(Objective)])
def test_no_contradiction_can_be_left_out(root: Path, rule: str) -> None:
    assert complaints(root, Declared(objective=rebuilt(rule=rule))) == {"page", "contradictions"}


def test_a_switch_that_nothing_reads_is_found(root: Path) -> None:
    new = [("advantage_clip", Annotated[float, Field(description="?"), Switch(source="ours")], 0.5)]
    kind = make_dataclass("Objective", new, bases=(Objective,), frozen=True)
    assert "nothing reads it" in complaints(root, Declared(objective=kind))


@pytest.mark.parametrize(
    ("old", "new", "says_the_same"),
    [
        ("GAD's reward.", "The reward of GAD.", True),  # a reason
        ('source="§3.3"', 'source="section 3.3"', True),
        ("Weight of the similarity reward.", "How much similarity counts.", True),  # help
        ('presets={"adversarial": "raw"}', 'presets={"adversarial": "soft"}', False),
        ('key="ril.similarity"', 'key="ril.alike"', False),
        ('] = "binary"', '] = "soft"', False),
    ],
)
def test_reasons_are_words_that_make_no_stage_stale(root: Path, old: str, new: str, says_the_same: bool) -> None:
    text = (root / "stages/config/rewards.py").read_text()
    assert old in text
    changed = text.replace(old, new)
    assert (digest_file(text.encode()) == digest_file(changed.encode())) == says_the_same

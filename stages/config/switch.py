"""Switches: settings in which a run can depart from the paper.

A switch is declared once, as a field of a frozen dataclass: name, type and default, with its help, bounds and `Switch`
in the annotation. The key of `params.yaml` and its form (`add_switches`), the final value (`resolve_switches`) and
docs/objectives.md (`flows.objectives`) are generated from that field. A rule that rejects conflicting values is a
method of the same dataclass, next to the switches that it checks (`mark_contradiction`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import create_model
from pydantic.fields import FieldInfo

from stages.config.baselines import ObjectiveName
from stages.config.block import Block

_B = TypeVar("_B", bound=Block)
O = TypeVar("O")  # noqa: E741 - a dataclass of switches


@dataclass(frozen=True)
class Departure:
    """Values other than the default, the reason to use them, and its source."""

    values: tuple[Any, ...]  # empty: any other value
    reason: str
    source: str


@dataclass(frozen=True)
class Switch:
    """What a switch declares in addition to name, type, bounds and default."""

    source: str  # source of the default: a section of the paper, or another one if the paper gives none
    departures: tuple[Departure, ...] = ()
    key: str | None = None  # key in params.yaml of a resolved switch; None: set by objectives only
    presets: Mapping[ObjectiveName, Any] = field(default_factory=dict)  # value by objective
    like: str | None = None  # key of the switch whose value is used if neither its own key nor the objective sets one


@dataclass(frozen=True)
class Declaration:
    """One switch of a dataclass, as declared."""

    name: str
    type: Any
    default: Any
    info: FieldInfo  # help and bounds
    switch: Switch

    @property
    def optional(self) -> bool:
        """Whether its key may be omitted or null, because the objective or another switch gives the value."""
        return bool(self.switch.presets) or self.switch.like is not None


@dataclass(frozen=True)
class Choices:
    """The values in params.yaml, before the objective adds its own."""

    values: Mapping[str, Any]  # by key, such as "ril.similarity"; defaults included
    written: frozenset[str]  # the keys in the file


def read_choices(**blocks: Block) -> Choices:
    """Returns the values of these blocks of params.yaml, passed by name."""
    values = {
        f"{block}.{key}": getattr(given, key) for block, given in blocks.items() for key in type(given).model_fields
    }
    return Choices(
        values, frozenset(f"{block}.{key}" for block, given in blocks.items() for key in given.model_fields_set)
    )


def list_switches(kind: type) -> dict[str, Declaration]:
    """Returns the switches that the dataclass `kind` declares, by name."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for one in fields(kind):
        annotation, *about = get_args(hints[one.name])
        switch = next(part for part in about if isinstance(part, Switch))
        info = next(part for part in about if isinstance(part, FieldInfo))
        found[one.name] = Declaration(one.name, annotation, one.default, info, switch)
    return found


def add_switches(block: str, kind: type) -> Callable[[type[_B]], type[_B]]:
    """Returns a decorator that adds the keys of all switches of `kind` in `block` to a block of params.yaml.

    Type checkers do not see these keys, because unresolved values must not be used. `resolve_switches` returns the
    final values.
    """

    def add(base: type[_B]) -> type[_B]:
        keys: dict[str, Any] = {}
        for one in list_switches(kind).values():
            place, _, key = (one.switch.key or "").partition(".")
            if place == block:
                keys[key] = _make_field(one)
        return create_model(base.__name__, __base__=base, __module__=base.__module__, **keys)

    return add


def _make_field(one: Declaration) -> tuple[Any, Any]:
    if not one.optional:
        return Annotated[one.type, one.info, one.switch], one.default
    return Annotated[one.type | None, one.info, one.switch], None


def resolve_switches(kind: Callable[..., O], objective: ObjectiveName, given: Choices) -> O:
    """Returns a `kind` with all final values: from params.yaml, else the objective, else the default."""
    values: dict[str, Any] = {}
    by_key: dict[str | None, Any] = {}
    for name, one in list_switches(kind).items():  # type: ignore[arg-type]
        value = given.values[one.switch.key] if one.switch.key else None
        if value is None:
            value = one.switch.presets.get(objective)
        if value is None:
            value = by_key[one.switch.like] if one.switch.like else one.default
        values[name] = by_key[one.switch.key] = value
    return kind(**values)


def mark_contradiction(rule: Callable[[O, Choices], str | None]) -> Callable[[O, Choices], str | None]:
    """Marks a method that returns one line (key, value, remedy) for conflicting values, else None."""
    rule.is_contradiction = True  # type: ignore[attr-defined]
    return rule


def list_contradictions(kind: type) -> Iterator[Callable[[Any, Choices], str | None]]:
    """Yields the rules of `kind` in the order of declaration, those of base classes first."""
    for part in reversed(kind.__mro__):
        yield from (rule for rule in vars(part).values() if getattr(rule, "is_contradiction", False))


def find_contradiction(resolved: object, given: Choices) -> str | None:
    """Returns the line of the first violated rule; None if all values agree."""
    lines = (rule(resolved, given) for rule in list_contradictions(type(resolved)))
    return next((line for line in lines if line), None)

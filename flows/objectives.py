"""docs/objectives.md: what it says of objectives and switches is written from their declarations.

python -m flows.objectives writes the sections between the page's marks anew; the rest of the page is written by hand.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from stages.config.baselines import BASELINES
from stages.config.block import Block
from stages.config.discriminator import Discriminator
from stages.config.objective import Objective
from stages.config.ril import Ril
from stages.config.switch import Declaration, Switch, list_contradictions, list_switches
from stages.job.files import write_text

PAGE = Path("docs/objectives.md")
_SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_WIDTH = 120
_UNBROKEN = "\0"  # a space inside code, where no line is broken


@dataclass(frozen=True)
class Declared:
    """What the sections are written from."""

    objective: type = Objective
    ril: type[Block] = Ril
    discriminator: type[Block] = Discriminator


def update_sections(text: str, declared: Declared | None = None) -> str:
    """The text of the page with every generated section as `declared` has it, all else as it was."""
    found = make_sections(declared or Declared())
    return _SECTION.sub(lambda part: f"{part[1]}\n{found[part[2]]}\n{part[3]}", text)


def make_sections(declared: Declared) -> Mapping[str, str]:
    """The generated sections by the names in their marks."""
    switches = list_switches(declared.objective)
    return {
        "objectives": _format_lines(_format_objectives(switches)),
        "student": _format_lines(_format_switches("ril", declared.ril, switches)),
        "discriminator": _format_lines(_format_switches("discriminator", declared.discriminator, switches)),
        "contradictions": _format_lines(
            _format_item(inspect.getdoc(rule) or "") for rule in list_contradictions(declared.objective)
        ),
    }


def _format_objectives(switches: Mapping[str, Declaration]) -> Iterator[str]:
    for name, baseline in BASELINES.items():
        given = [one for one in switches.values() if name in one.switch.presets]
        values = ", ".join(
            f"`{one.switch.key}: {_format_value(one.switch.presets[name])}`" for one in given if one.switch.key
        )
        further = "".join(f" {one.info.description}" for one in given if not one.switch.key)
        sets = f" Sets {values}." if values else ""
        yield _format_item(f"`{name}` ({baseline.source}): {baseline.description}{sets}{further}")


def _format_switches(name: str, block: type[Block], switches: Mapping[str, Declaration]) -> Iterator[str]:
    """The switches of one block in its order: those that are resolved, and those that are read from it as they are."""
    by_key = {one.switch.key: one for one in switches.values()}
    for field, info in block.model_fields.items():
        key, switch = f"{name}.{field}", next((part for part in info.metadata if isinstance(part, Switch)), None)
        if switch is not None:
            about, default = (one.info, one.default) if (one := by_key.get(key)) else (info, info.default)
            value = f"as `{switch.like}`" if switch.like else f"`{_format_value(default)}`"
            yield _format_item(
                f"**`{key}`**: {about.description} Default {value}{_format_bounds(about)} ({switch.source})."
            )
            for departure in switch.departures:
                values = ", ".join(f"`{_format_value(value)}`" for value in departure.values) or "another value"
                yield _format_item(f"{values}: {departure.reason} Source: {departure.source}.", depth=1)


def _format_bounds(info: FieldInfo) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = {name: getattr(part, name) for part in info.metadata for name in words if hasattr(part, name)}
    return "".join(f", {words[name]} {limit:g}" for name, limit in limits.items())


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _format_item(text: str, depth: int = 0) -> str:
    indent = "  " * depth
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", _UNBROKEN), " ".join(text.split()))
    filled = textwrap.fill(
        whole,
        _WIDTH,
        initial_indent=f"{indent}- ",
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_UNBROKEN, " ")


def _format_lines(items: Iterator[str]) -> str:
    return "\n".join(items) + "\n"


if __name__ == "__main__":
    page = Path.cwd() / PAGE
    write_text(page, update_sections(page.read_text(encoding="utf-8")))

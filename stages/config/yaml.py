"""Values in YAML files: read as DVC reads them, laid over each other, compared."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.config.plain import DEEPEST, make_printable
from stages.config.regular import explain_decoding, explain_os_error, read_regular

MOST_BYTES = 1_000_000  # params.yaml has 7 kB, dvc.lock 46 kB
MOST_VALUES = 5_000  # params.yaml has 370, dvc.lock 2,300; 5,000 are read in 0.7 s
_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_.]*_[0-9_.]*([eE][-+]?[0-9_]+)?|0[xob][0-9a-fA-F]*_[0-9a-fA-F_]*")


class ParamsError(ValueError):
    """Parameters that cannot be used; the message has one line per mistake: key, value, remedy."""


def merge_params(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `overlay` into `base` by key; `null` in the overlay deletes a key (JSON merge patch, RFC 7386)."""
    result = dict(base)
    for key, value in overlay.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            inner = result.get(key)
            result[key] = merge_params(inner if isinstance(inner, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys with dots; an empty mapping has none."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = f"{above}{key}"
        found |= flatten(value, f"{inner}.") if isinstance(value, Mapping) else {inner: value}
    return found


def compare_values(
    before: Mapping[str, Any], after: Mapping[str, Any], absent: Any = None, above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The keys, with dots, in which two trees differ, and both values; `absent` stands for what one of them lacks."""
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, absent), after.get(key, absent)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from compare_values(old, new, absent, f"{above}{key}.")
        elif old != new:
            yield f"{above}{key}", old, new


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; raises ParamsError with file, line and column if it is not one."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Returns the text of a YAML file; raises ParamsError if it is not a regular file in UTF-8 of at most 1 MB."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file; run this in the project's folder") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: {explain_decoding(error)}") from error
    except OSError as error:
        raise ParamsError(f"{path}: {explain_os_error(error)}; put a text file there") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Returns the mapping in a YAML text, parsed like DVC (YAML 1.2: 1e-4 is a number, duplicate keys fail).

    Forms that readers of YAML disagree about, or that make a short text a large value, are refused (`_find_problems`).
    libyaml looks for them: it takes 0.5 ms for params.yaml, ruamel 40 ms.
    """
    try:
        for event, problem in _find_problems(yaml.parse(text, Loader=yaml.CSafeLoader)):
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        value = YAML(typ="safe", pure=True).load(text)
    except (MarkedYAMLError, yaml.MarkedYAMLError) as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ParamsError(f"{source}{place}: not readable as YAML: {make_printable(str(error.problem))}") from error
    except (YAMLError, yaml.YAMLError, ValueError, OverflowError) as error:  # 2001-99-99, an integer of 5,000 digits
        raise ParamsError(f"{source}: not readable as YAML: {make_printable(str(error))}") from error
    if not isinstance(value, dict):
        raise ParamsError(f"{source}: expected keys and values, found {type(value).__name__}")
    return value


@dataclass
class _Node:
    """A value while its events are read."""

    values: int  # while it is open: how many values there are before it; then how many it is
    complete: bool = False


def _find_problems(events: Iterator[Any]) -> Iterator[tuple[Any, str]]:
    """Yields the events at which a text is refused, with the reason. An alias is counted, not followed."""
    opened: list[_Node] = []
    anchored: dict[str | None, _Node] = {}
    total = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent) and event.version:
            yield event, "%YAML changes what values mean; remove the line"
        if isinstance(event, yaml.CollectionEndEvent):
            closed = opened.pop()
            closed.values, closed.complete = total - closed.values, True
        if not isinstance(event, yaml.NodeEvent):
            continue
        node = _Node(total)
        total += 1
        if isinstance(event, yaml.AliasEvent):
            target = anchored.get(event.anchor, node)
            if target is not node and not target.complete:
                yield event, f"*{event.anchor} is used in its own value; write the value out"
            total += target.values if target.complete else 0
        elif event.anchor:
            anchored[event.anchor] = node
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(node)
        else:
            node.values, node.complete = 1, True
        if len(opened) > DEEPEST:
            yield event, f"nested more than {DEEPEST} levels deep; remove levels"
        if total > MOST_VALUES:
            yield event, f"more than {MOST_VALUES:,} values, each alias counted in full; remove some"
        if problem := _find_form(event):
            yield event, problem


def _find_form(event: Any) -> str | None:
    """Returns why the form of a value is refused: a tag, or what readers of YAML 1.1 and 1.2 read differently."""
    if getattr(event, "tag", None) is not None:
        return f"the tag {event.tag} is not supported; write the value without it"
    if not isinstance(event, yaml.ScalarEvent) or event.style:
        return None
    if event.value == "<<":
        return "YAML 1.2 has no merge key <<; write the keys out"
    if _UNDERSCORES.fullmatch(event.value):
        return f"{event.value[:40]} is a number for some readers and text for others; write it without _, or in quotes"
    return None

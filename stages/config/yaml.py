"""Values in YAML files: read as DVC reads them, laid over each other, compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


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
    if not path.is_file():
        raise ParamsError(f"{path}: no such file; run this in the project's folder")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Returns the mapping in a YAML text, parsed like DVC (YAML 1.2: 1e-4 is a number, duplicate keys fail)."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ParamsError(f"{source}: expected keys and values, found {type(value).__name__}")
    return value

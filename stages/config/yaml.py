"""Values in YAML files: read as DVC reads them, and laid over each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class ParamsError(ValueError):
    """Parameters that can't be used; the message is one line for each mistake: key, value, remedy."""


def merge_params(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overlay` laid over it, key by key; `null` in the overlay deletes a key (JSON merge patch, RFC
    7386).
    """
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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ParamsError with file, line and column when it is not one."""
    if not path.is_file():
        raise ParamsError(f"{path}: no such file; run this in the project's folder")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text, read as DVC reads it (YAML 1.2: 1e-4 is a number, a key stands once)."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ParamsError(f"{source}: expected keys and values, found {type(value).__name__}")
    return value

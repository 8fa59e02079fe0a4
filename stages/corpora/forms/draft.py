"""What a form makes of a row, before its images are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, tuple[str, ...]]  # columns by field of a question, such as {"question": ("prompt",)}


@dataclass
class Draft:
    """A question without the bytes of its images."""

    turns: list[dict[str, str]]  # with `<image>` where an image stands, as far as the row says it
    images: list[str | bytes] = field(default_factory=list)  # paths or bytes, in the order of their markers
    answers: list[str] = field(default_factory=list)  # what is right, the commonest first
    kind: str = "open"


def take_value(values: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column, or of a key inside a column (`meta.truth`); None if there is none."""
    if column in values:
        return values[column]
    head, _, rest = column.partition(".")
    inner = values.get(head) if rest else None
    if isinstance(inner, str) and inner.startswith("{"):  # a cell of CSV
        try:
            inner = json.loads(inner)
        except (json.JSONDecodeError, RecursionError):
            return None
    return take_value(inner, rest) if rest and isinstance(inner, Mapping) else None


def take_first(values: Mapping[str, Any], fields: Fields, name: str) -> Any:
    """Returns the first value that is not null among the columns of a field; None if all are."""
    found = (take_value(values, column) for column in fields.get(name, ()))
    return next((value for value in found if value is not None), None)


def name_columns(fields: Fields, name: str) -> str:
    """Returns the columns of a field for a message, the field itself if it has none."""
    return ", ".join(fields.get(name, ())) or name

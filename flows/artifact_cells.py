"""Rows of tables and keys in the form that Prefect's artifacts take; imports no Prefect, since stages use it too."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


def make_artifact_key(text: str) -> str:
    """A key that Prefect accepts: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "progress"


def simplify_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with values that JSON has: numbers with four digits, text for everything else."""
    return [{key: _simplify(value) for key, value in row.items()} for row in rows]


def transpose_steps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Numbers by step with a line for each, so that many fit on a page; rows with texts stay as they are."""
    cells = simplify_rows(rows)
    if any(isinstance(value, str) for row in rows for value in row.values()):
        return cells
    names = dict.fromkeys(key for row in cells for key in row if key != "step")
    return [{"": name, **{f"step {row.get('step')}": row.get(name) for row in cells}} for name in names]


def _simplify(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)

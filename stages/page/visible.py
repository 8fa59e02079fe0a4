"""Texts of models and users for pages: what cannot be seen is named, and nothing is longer than a reader reads."""

import re
from typing import Any

from markupsafe import Markup

LONGEST_SHOWN = 50_000  # characters
# Control characters except tab, newline and carriage return, marks that change the direction of what follows, half
# surrogates (which no file can hold), separators of lines, tags. Joiners stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def name_hidden_characters(text: str) -> str:
    """Returns `text` with characters that nobody sees as "[U+202E]"."""
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(lambda one: f"[U+{ord(one[0]):04X}]", text)


def make_visible(value: Any) -> Any:
    """Returns what a template shows of a value: `finalize` of its environment. HTML made by the templates stays."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    shown = name_hidden_characters(value[:LONGEST_SHOWN])
    return shown if len(value) <= LONGEST_SHOWN else f"{shown} [... {len(value):,} characters]"

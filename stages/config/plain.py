"""What a value in params.yaml may be, whatever its key: one rule for all blocks, before pydantic sees them."""

import math
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

DEEPEST = 20  # levels of blocks and lists; params.yaml has 5
LARGEST_INTEGER = 2**53  # above it a float is another number, as in JSON and in the forms
LONGEST_TEXT = 10_000
BANNED_NAMES = ("size", "nfiles")  # DVC does not see changes of such a key and restores the old output (issue 10296)
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reverse the order of what is shown
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, half surrogates, separators of lines
_LIMITS = {"maxlevel": 3, "maxdict": 4, "maxlist": 4, "maxtuple": 4, "maxstring": 80, "maxlong": 40, "maxother": 80}


class _Short(reprlib.Repr):
    """`repr` with a bound on length and depth."""

    def repr_int(self, number: int, _level: int) -> str:
        digits = int(number.bit_length() * math.log10(2)) + 1
        return repr(number) if digits <= self.maxlong else f"(a number of about {digits} digits)"


def abbreviate(value: object) -> str:
    """Returns `repr(value)`, with the middle left out where it is long or deep."""
    short = _Short()
    for limit, most in _LIMITS.items():
        setattr(short, limit, most)
    return short.repr(value)


def make_printable(text: str) -> str:
    """Returns `text` as one line of at most 400 characters, unprintable characters escaped."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text[:2000].split()))
    return line if len(line) <= 400 else f"{line[:400]}..."


def find_character(text: str, allowed: str = "") -> str | None:
    """Returns the first character of `text` that no line of text holds, as `U+0000`; None if there is none."""
    found = (char for char in text if char in _TURNING or unicodedata.category(char) in _UNPRINTABLE)
    return next((f"U+{ord(char):04X}" for char in found if char not in allowed), None)


def list_faults(values: Mapping[Any, Any]) -> Iterator[str]:
    """Yields one line (key, value, remedy) for each value that no parameter can have.

    Values are null, true or false, finite numbers, text in printable characters, lists without repetition, and blocks.
    `endpoint.body` is sent to a provider and `args` to vLLM as they are: they may hold empty texts and repetitions.
    """
    yield from _list_block_faults(values, "", 1, False)


def _list_block_faults(block: Mapping[Any, Any], above: str, depth: int, free: bool) -> Iterator[str]:
    for key, value in block.items():
        if not isinstance(key, str):
            yield f"{above}{abbreviate(key)} is not a name of a key; names are text: put it in quotes or remove it"
        elif not key.strip() or not key.isprintable() or "${" in key:
            yield f"{above}{abbreviate(key)} is not a name of a key: it is empty or holds unusual characters; rename it"
        elif key in BANNED_NAMES and not free:
            yield f"{above}{key}: DVC does not see changes of keys named size or nfiles; rename it"
        else:
            yield from _list_value_faults(value, f"{above}{key}", depth, free or key in ("body", "args"))


def _list_value_faults(value: Any, key: str, depth: int, free: bool) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and depth >= DEEPEST:
        yield f"{key[:200]} is nested more than {DEEPEST} levels deep; remove levels"
    elif isinstance(value, Mapping):
        yield from _list_block_faults(value, f"{key}.", depth + 1, free)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _list_value_faults(inner, f"{key}.{number}", depth + 1, free)
            if not free and inner in value[:number]:
                yield f"{key} has {abbreviate(inner)} twice; remove one"
    elif fault := _find_scalar_fault(value, free):
        yield f"{key} = {abbreviate(value)}: {fault}"


def _find_scalar_fault(value: object, free: bool) -> str | None:
    """Returns what is wrong with a value that is no block and no list, and the remedy; None if nothing is."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        too_large = abs(value) > LARGEST_INTEGER
        return f"integers are at most 2**53 ({LARGEST_INTEGER:,}); write a smaller one" if too_large else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "not a finite number; write one"
    if not isinstance(value, str):
        return f"a {type(value).__name__} is neither number nor text; put it in quotes"
    if len(value) > LONGEST_TEXT:
        return f"{len(value):,} characters, more than {LONGEST_TEXT:,}; shorten it"
    if not free and not value.strip():
        return "empty text; write a value, or remove the key"
    if found := find_character(value, allowed="\t\n\r" if free else ""):
        return f"holds the character {found}, which is not printable; remove it"
    return (
        "`${` begins a reference of DVC, which is not resolved here; write the value itself" if "${" in value else None
    )

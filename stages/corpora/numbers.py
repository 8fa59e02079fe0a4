"""Numbers in texts that anybody may have written, read exactly and in bounded time and memory."""

import re
from collections import deque
from fractions import Fraction

LONGEST_NUMBER = 1000  # characters of digits
LARGEST_EXPONENT = 300  # of ten; every number that is read can be a float (10^308)

# Possessive quantifiers: the time is linear in the text. A sign counts at the start of a word only: "2-3" has no -3.
# The lookahead says where a number can begin: prose is read 3 to 20 times faster.
_FORM = (
    r"(?=[-+−$€£¥.\d])(?:(?<![\w./])(?P<above>[-+−]?\d++)\s?/\s?(?P<below>\d++)(?!\w|/|\.\d)"
    r"|(?:(?<![\w.])(?P<sign>[-+−]))?[$€£¥]?+(?<!%s)"
    r"(?:(?P<whole>\d{1,3}(?:[,_]\d{3})++(?![\d_])|\d++(?!_\d))(?P<part>\.\d++)?(?P<power>[eE][-+]?\d++)?"
    r"|(?P<bare>\.\d++)))"
)
_NUMBER = re.compile(_FORM % r"[\w.]")
_GLUED_NUMBER = re.compile(_FORM % r"[\d.]")


def find_last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Returns the last match of `pattern`, None without one; the others are not kept."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def read_last_number(text: str, glued: bool = False) -> Fraction | None:
    """Returns the last number in `text`, exactly; None if there is none, or if the last one is out of bounds.

    "1,200" and "1_200" are 1200, "-$5" is -5, "12 cm" is 12, "1/2" is a half; "1/0" and "1e999999999" are no numbers.
    `glued` also takes numbers behind a letter, as in "x7".
    """
    last = find_last_match(_GLUED_NUMBER if glued else _NUMBER, text)
    return None if last is None else _make_fraction(last)


def find_numbers(text: str, most: int) -> list[tuple[Fraction, int, int, int]]:
    """Returns the last `most` numbers of a text in order: value, digits behind the point, start, end.

    Numbers behind a letter count, as in "x7"; those out of bounds are left out.
    """
    found = deque(_GLUED_NUMBER.finditer(text), maxlen=most)
    values = ((_make_fraction(one), one) for one in found)
    return [
        (value, len(one["part"] or one["bare"] or ".") - 1, one.start(), one.end())
        for value, one in values
        if value is not None
    ]


def read_number_only(text: str) -> Fraction | None:
    """Returns the number that is the whole of `text` but for white space; None otherwise."""
    found = _NUMBER.fullmatch(text.strip())
    return None if found is None else _make_fraction(found)


def _make_fraction(found: re.Match[str]) -> Fraction | None:
    """Returns the value of a match of _NUMBER; None if it divides by zero or is out of bounds."""
    if len(found.group()) > LONGEST_NUMBER:
        return None
    if found["below"]:
        above, below = int(found["above"].replace("−", "-")), int(found["below"])
        value = Fraction(above, below) if below else None
    else:
        power = found["power"] or ""
        if len(power) > len("e+300") or abs(int(power[1:] or "0")) > LARGEST_EXPONENT:
            return None
        digits = (found["whole"] or "0").replace(",", "").replace("_", "") + (found["part"] or found["bare"] or "")
        value = Fraction(digits + power) * (-1 if found["sign"] in ("-", "−") else 1)
    return value if value is not None and abs(value) < 10**LARGEST_EXPONENT else None

"""Ready reward functions, each 1.0 or 0.0 unless it says otherwise; None where the reference is not of its kind.

A reward function takes by name what it needs of `question`, `reference`, `answer`, `finish_reason` and `images`
(docs/rewards.md); further parameters are `arguments` of its entry in `ril.rewards`.
"""

import logging
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

from stages.corpora.final_answers import LONGEST_REPLY, find_leading_letter, find_marked_answer, unwrap_answer
from stages.corpora.quantities import Quantity, find_quantities, read_quantity
from stages.corpora.scoring import normalise_text

_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_NUMBER = r"\s*[-+]?\d+(?:\.\d+)?\s*"
_BOX = re.compile(rf"[\[(]({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})[\])]")
Box = tuple[float, float, float, float]


def choice(answer: str, reference: str, letters: str = "ABCDEFGHIJ") -> float | None:
    """1.0 if the answer names the option of the reference, a single letter; "B", "(B) dog" and "Answer: B" name B.

    None if the reference is not one of `letters`.
    """
    wanted = reference.strip().strip("().").upper()
    if len(wanted) != 1 or wanted not in letters:
        return None
    said = _read_final(answer)
    alone = _LETTER.fullmatch(said)
    letter = alone[1].upper() if alone else find_leading_letter(said, letters)
    return float(letter == wanted)


def numeric(answer: str, reference: str, tolerance: float = 0.0, absolute: float = 0.0) -> float | None:
    """1.0 if the answer's last quantity is that of the reference, within `tolerance` (relative) or `absolute`.

    Units of one dimension are converted (1 m is 100 cm); a number without a unit is taken to be in the other's. None if
    the reference is no quantity.
    """
    wanted = read_quantity(reference)
    if wanted is None:
        return None
    found = find_quantities(_read_final(answer))
    return float(bool(found) and _is_near(found[-1], wanted, Fraction(tolerance), Fraction(absolute)))


def box_iou(answer: str, reference: str, threshold: float = 0.0) -> float | None:
    """The intersection over union of the last box [x1, y1, x2, y2] of the answer with that of the reference.

    With a `threshold` above 0 it is 1.0 from this value on, else 0.0. 0.0 for an answer without a box; None if the
    reference has none.
    """
    wanted, found = _read_box(reference), _read_box(_read_final(answer)) or _read_box(answer)
    if wanted is None:
        return None
    value = 0.0 if found is None else compute_iou(found, wanted)
    return float(value >= threshold) if threshold > 0 else value


def length(answer: str, least: int = 0, most: int = 1_000_000, unit: str = "words") -> float:
    """1.0 if the answer has `least` to `most` words, or characters with `unit: characters`."""
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}; take words or characters")
    count = len(answer.split()) if unit == "words" else len(answer)
    return float(least <= count <= most)


def format(answer: str, pattern: str) -> float:
    """1.0 if the whole answer, without white space around it, matches the regular expression `pattern`.

    A dot matches line ends, too.
    """
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def math_verify(answer: str, reference: str) -> float | None:
    """1.0 if the answer is the mathematical value or expression of the reference, by the library math-verify.

    None if the library reads no expression in the reference. Needs the extra `math`. The limit of a call is `seconds`
    of the entry, so the library's own time limits are off.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    gold = parse(f"${reference.strip().strip('$')}$", parsing_timeout=None)
    if not gold:
        return None
    return float(verify(gold, parse(answer[-LONGEST_REPLY:], parsing_timeout=None), timeout_seconds=None))


def compute_iou(one: Box, other: Box) -> float:
    """Returns the intersection over union of two boxes (x1, y1, x2, y2), corners in any order; 0.0 without an area."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = _sort_corners(one), _sort_corners(other)
    inside = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - inside
    return inside / union if union > 0 else 0.0


def _sort_corners(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _read_box(text: str) -> Box | None:
    found = _BOX.findall(text[-LONGEST_REPLY:])
    if not found:
        return None
    x1, y1, x2, y2 = map(float, found[-1])
    return x1, y1, x2, y2


def _read_final(answer: str) -> str:
    """Returns the part of an answer that is marked as final, else all of it without its reasoning."""
    text = unwrap_answer(answer)[-LONGEST_REPLY:]
    marked = find_marked_answer(text)
    return text if marked is None else marked[0]


def _is_near(said: Quantity, wanted: Quantity, relative: Fraction, absolute: Fraction) -> bool:
    if said.unit and wanted.unit and said.unit != wanted.unit:
        return False
    factor = said.factor if said.unit else wanted.factor
    value = said.value * factor if wanted.unit else said.value
    aim = wanted.base if wanted.unit else wanted.value
    scale = wanted.factor if wanted.unit else 1
    if said.noun and wanted.noun and normalise_text(said.noun) != normalise_text(wanted.noun):
        return False
    return abs(value - aim) <= max(relative * abs(aim), absolute * scale)


FUNCTIONS: Mapping[str, Callable[..., float | None]] = MappingProxyType(
    {
        "choice": choice,
        "numeric": numeric,
        "box_iou": box_iou,
        "length": length,
        "format": format,
        "math_verify": math_verify,
    }
)

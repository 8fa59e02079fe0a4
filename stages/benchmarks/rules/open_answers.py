"""The authors' rule for MMMU's open questions (M10), which lmms-eval also uses."""

import re
from collections.abc import Sequence

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
# Digits are matched from the start of a run only: otherwise a long run takes quadratic time.
_GROUPED = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])")

NormalForm = str | float


def extract_candidates(reply: str) -> set[NormalForm]:
    """Returns candidate answers: line ends after words like "is", and every number in them, normalised."""
    tails = _split_tails(reply)
    numbers = {number for tail in tails for form in (_GROUPED, _SCIENTIFIC, _PLAIN) for number in form.findall(tail)}
    return {value for text in (*tails, *numbers) for value in normalise_open_answer(text)}


def _split_tails(reply: str) -> list[str]:
    text = reply.strip().strip(".").lower()
    lines = text.split("\n")
    found = []
    for place, line in enumerate(lines):
        signs = (*_INDICATORS, "=") if place == len(lines) - 1 else _INDICATORS
        tail = ""
        for sign in signs:
            if sign in line:
                end = line.split(sign)[-1].strip()
                tail = end if not tail or len(end) < len(tail) else tail
        if tail and tail not in _TRIVIAL:
            found.append(tail)
    return found or [text]


def normalise_open_answer(text: str) -> list[NormalForm]:
    """Returns a number rounded to two decimals, else the lower-case text; pads one character with blanks."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
    return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def is_open_answer_right(reply: str, golds: Sequence[str]) -> bool:
    """Returns whether a number in the reply equals one of `golds`, or a candidate contains one's text."""
    wanted = [value for gold in golds for value in normalise_open_answer(gold)]
    texts = [value for value in wanted if isinstance(value, str)]
    meant = extract_candidates(reply)
    return any(any(text in said for text in texts) if isinstance(said, str) else said in wanted for said in meant)

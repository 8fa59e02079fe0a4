"""Scoring of an answer against a reference, without a judge."""

import re
import string
from fractions import Fraction

from stages.corpora.final_answers import (
    LONGEST_REPLY,
    find_leading_letter,
    find_marked_answer,
    unwrap_answer,
)
from stages.corpora.numbers import find_last_match, read_last_number, read_number_only

_PUNCTUATION = " .,:;!?*_`'\"“”„«»()[]{}。，！？"
_ARTICLE = re.compile(r"^(?:an?|the) (?=\S)")
_REMARK = re.compile(r"\([^()]*+\)")
_QUOTED = re.compile(r"[\"“„«]([^\"“”„«»]++)[\"”»]")
_YES_OR_NO = re.compile(r"\W*+(yes|no)(?!\w)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def find_last_number(text: str) -> str | None:
    """Returns the last number in `text`, None if there is none."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def is_correct(answer: str, reference: str) -> bool:
    """Returns whether `answer` matches `reference`, as a careful reader would decide.

    Reasoning and answer tags are left out; an answer marked as final ("The answer is 7", a box) counts alone. A numeric
    reference equals the last number, by value and without units, signs of currency and remarks in brackets. A letter is
    read as an option. Any other reference is compared as text, ignoring case, white space, articles and punctuation
    around it. Answers of more than LONGEST_REPLY characters match nothing.
    """
    text = unwrap_answer(answer)
    if len(text) > LONGEST_REPLY:
        return False
    marked = find_marked_answer(text)
    said = text if marked is None else marked[0]
    number = read_number_only(reference.strip().rstrip("%°"))
    if number is not None:
        return _read_number(said) == number
    wanted = normalise_text(reference)
    if re.fullmatch(r"[A-Z]", reference.strip()):
        return normalise_text(said) == wanted or find_leading_letter(said, string.ascii_uppercase) == reference.strip()
    if wanted in ("yes", "no"):
        first = _YES_OR_NO.match(said)
        return first is not None and first[1].casefold() == wanted
    quoted = find_last_match(_QUOTED, said)
    forms = (text, said, *([quoted[1]] if quoted else []))
    return any(normalise_text(form) == wanted for form in forms)


def _read_number(text: str) -> Fraction | None:
    """Returns the last number outside brackets, else the last number."""
    outside = read_last_number(_REMARK.sub(" ", text), glued=True)
    return read_last_number(text, glued=True) if outside is None else outside


def is_same_number(text: str, reference: str) -> bool:
    """Returns whether the last number in `text` is the one in `reference`."""
    number = read_last_number(text)
    return number is not None and number == read_last_number(reference)


def normalise_text(text: str) -> str:
    """Returns `text` in lower case, with single blanks, without an article before it and punctuation around it."""
    plain = " ".join(text.casefold().split())
    bare = plain.strip(_PUNCTUATION)
    return _ARTICLE.sub("", bare) or plain


def standard_error(share: float, count: int) -> float:
    """Returns the standard error of a proportion over `count` answers, in the unit of the proportion."""
    return (share * (1 - share) / count) ** 0.5 if count else 0.0

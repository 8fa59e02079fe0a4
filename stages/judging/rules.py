"""Rule-based verdicts: answers without content are wrong and, if requested, exact matches are right.

A single character or opener can fool an LLM judge ("One token to fool LLM-as-a-judge", arXiv 2507.08794; trap T29).
"""

import re

from stages.corpora.scoring import is_same_number
from stages.groups.repeats import find_repeats
from stages.judging.sanitize import LONGEST_READ, normalise_characters, shorten_middle

EMPTY, LOOPING, KEY_PHRASE = "by rule: empty", "by rule: repeats itself", "by rule: only announces an answer"
SAME, UNREAD, NO_REPLY = "by rule: the reference", "too long for the judge", "the judge did not reply"
SHORT_REFERENCE = 32  # characters; longer references are prose and are not compared by rule

# The text ends in at least 6 repeats of a piece of up to 80 characters, 48 characters or more in total.
_LOOP_PIECE, _LOOP_REPEATS, _LOOP_CHARACTERS = 80, 6, 48
_LOOP_WINDOW = 2000

# Openers that fooled judges in that paper, in five languages, and variants; a sequence of them has no content.
_OPENER = re.compile(
    r"(?:(?:ok(?:ay)?|sure|certainly|of course|alright|well|hello|thanks?(?: you)?)"
    r"|(?:my |the |a |here is (?:my |the )?|below is (?:my |the )?)?"
    r"(?:thought process|thinking process|thought|thinking|reasoning|explanation|analysis|solution|final answer|answer|"
    r"conclusion|result|response|step \d+|first|begin|start)(?: is)?"
    r"|(?:let us|let me|let's|let’s|lets|i will|i'll|we will|we can)"
    r" (?:think|solve|work|go|break|look|answer|do|reason|analy[sz]e)(?: (?:about|through|at|down|out|on))?"
    r"(?: (?:this|it|that|the))?(?: (?:problem|question|task|image|picture))?(?:,? (?:step by "
    r"step|carefully|together))?"
    r"|step by step|respuesta|solución"
    r"|解|解答|答案|回答|かいせつ|解説|lösung|antwort|réponse|solution finale|ответ|решение"
    r")(?=\W|$)",
    re.IGNORECASE,
)


_SIGNS = re.compile(r"\W*+")


def find_rule_reason(candidate: str, reference: str = "") -> str | None:
    """Returns why `candidate` is wrong by rule (EMPTY, LOOPING, KEY_PHRASE), or None.

    A candidate that equals the reference or a part of it is never wrong by rule: "+" or "the first one" can be right.
    """
    text = normalise_characters(shorten_middle(candidate, LONGEST_READ)).strip()
    if not text:
        return EMPTY
    words = _strip_signs(text)
    if text in reference or (words and words in _strip_signs(normalise_characters(reference))):
        return None
    if _ends_in_loop(text[-_LOOP_WINDOW:]):
        return LOOPING
    return KEY_PHRASE if _says_nothing(text) else None


def _strip_signs(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def _ends_in_loop(text: str) -> bool:
    """Returns whether the text ends in repeats of a short piece."""
    return any(
        length // piece >= _LOOP_REPEATS and length // piece * piece >= _LOOP_CHARACTERS
        for piece, length in find_repeats(text)
        if piece <= _LOOP_PIECE
    )


def _says_nothing(text: str) -> bool:
    """Returns whether only punctuation is left after leading openers are removed."""
    place = 0
    while True:
        signs = _SIGNS.match(text, place)
        place = signs.end() if signs else place
        opener = _OPENER.match(text, place)
        if opener is None or not opener.group():
            return place == len(text)
        place = opener.end()


def is_plainly_right(candidate: str, reference: str) -> bool:
    """Returns whether the candidate, or its text after the last "answer:", is exactly a short reference.

    False does not mean wrong: only the judge decides that.
    """
    wanted = normalise_characters(reference).strip()
    if not wanted or len(wanted) > SHORT_REFERENCE:
        return False
    text = normalise_characters(shorten_middle(candidate, LONGEST_READ)).strip()
    closing = re.split(r"\banswer(?: is)?\s*:?\s*", text, flags=re.IGNORECASE)[-1].strip()
    return any(len(one) <= SHORT_REFERENCE and _is_only(one, wanted) for one in (text, closing))


def _is_only(text: str, wanted: str) -> bool:
    """Returns whether `text` is exactly `wanted`; a numeric `wanted` requires a single number, compared by value."""
    if re.fullmatch(r"-?\d+(?:\.\d+)?", wanted) is None:
        return _normalise(text) == _normalise(wanted)
    return re.fullmatch(r"\W*-?\d+(?:\.\d+)?\W*", text) is not None and is_same_number(text, wanted)


def _normalise(text: str) -> str:
    """Returns `text` in lower case with single blanks and without final full stops; stricter than validation."""
    return " ".join(text.casefold().split()).rstrip(".")

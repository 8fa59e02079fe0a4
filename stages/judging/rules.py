"""Rule-based verdicts: answers without content are wrong and, if requested, exact matches are right.

A single character or opener can fool an LLM judge ("One token to fool LLM-as-a-judge", arXiv 2507.08794; trap T29).
"""

import re

from stages.corpora.scoring import is_correct
from stages.judging.sanitize import normalise_characters

EMPTY, LOOPING, KEY_PHRASE = "by rule: empty", "by rule: repeats itself", "by rule: only announces an answer"
SAME, UNREAD, NO_REPLY = "by rule: the reference", "too long for the judge", "the judge did not reply"
SHORT_REFERENCE = 32  # characters; longer references are prose and are not compared by rule

# The text ends in at least 6 repeats of a piece of up to 80 characters, 48 characters or more in total.
_LOOP = re.compile(r"(?P<piece>.{1,80}?)(?P=piece){5,}$", re.DOTALL)
_LOOP_CHARACTERS = 48
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


def find_rule_reason(candidate: str, reference: str = "") -> str | None:
    """Returns why `candidate` is wrong by rule (EMPTY, LOOPING, KEY_PHRASE), or None.

    A candidate that equals the reference or a part of it is never wrong by rule: "+" or "the first one" can be right.
    """
    text = normalise_characters(candidate).strip()
    if not text:
        return EMPTY
    if text in reference or (
        _strip_signs(text) and _strip_signs(text) in _strip_signs(normalise_characters(reference))
    ):
        return None
    loop = _LOOP.search(text[-_LOOP_WINDOW:])
    if loop and len(loop.group()) >= _LOOP_CHARACTERS:
        return LOOPING
    return KEY_PHRASE if _says_nothing(text) else None


def _strip_signs(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def _says_nothing(text: str) -> bool:
    """Returns whether only punctuation is left after leading openers are removed."""
    left = text
    while True:
        left = re.sub(r"^\W+", "", left)
        opener = _OPENER.match(left)
        if opener is None or not opener.group():
            return not left
        left = left[opener.end() :]


def is_plainly_right(candidate: str, reference: str) -> bool:
    """Returns whether the candidate, or its text after the last "answer:", is exactly a short reference.

    False does not mean wrong: only the judge decides that.
    """
    wanted, text = normalise_characters(reference).strip(), normalise_characters(candidate).strip()
    if not wanted or len(wanted) > SHORT_REFERENCE:
        return False
    closing = re.split(r"\banswer(?: is)?\s*:?\s*", text, flags=re.IGNORECASE)[-1].strip()
    return any(len(one) <= SHORT_REFERENCE and _is_only(one, wanted) for one in (text, closing))


def _is_only(text: str, wanted: str) -> bool:
    """Returns whether `text` is exactly `wanted`; a numeric `wanted` requires a single number, compared by value."""
    one_number = re.fullmatch(r"\W*-?\d+(?:\.\d+)?\W*", text) is not None
    number = re.fullmatch(r"-?\d+(?:\.\d+)?", wanted) is not None
    return is_correct(text, wanted) if one_number or not number else False

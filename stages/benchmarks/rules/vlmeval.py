"""The rules of VLMEvalKit as published in ms-vlmeval 0.0.20, re-implemented from their description."""

import ast
import re
import string
from collections.abc import Collection, Mapping, Sequence

FAILED_CALL = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NONE_OF_THEM = "Z"
NONE_TEXT = "None"
LAST_TOKENS = 4  # the letter must first occur within this number
RELATIVE_ERROR = 0.05  # ChartQA's relaxed accuracy
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# Values that pandas reads as missing by default: this harness drops such options from prompts and matching.
_INDEFINITE = ("-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN")
_NOT_A_NUMBER = ("-NaN", "-nan", "NaN", "nan", "#NA", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "<NA>")
PANDAS_MISSING = frozenset(("", "NULL", "None", "null", *_INDEFINITE, *_NOT_A_NUMBER))


def list_seen_options(options: Mapping[str, str]) -> dict[str, str]:
    """Returns the options that remain after reading with pandas."""
    return {letter: text for letter, text in options.items() if text not in PANDAS_MISSING}


def match_letter(reply: str, letters: Collection[str]) -> str | None:
    """Returns the only option letter that is a word of the reply near its end; Z for a refusal; else None (M1)."""
    if FAILED_CALL in reply:
        return None
    if any(refusal in reply for refusal in REFUSALS):
        return NONE_OF_THEM
    words = reply.translate(_TO_BLANKS).split()
    present = [one for one in letters if one in words]
    if len(present) == 1:
        near_the_end = words.index(present[0]) >= len(words) - LAST_TOKENS
        return present[0] if near_the_end else None
    return NONE_OF_THEM if not present and NONE_OF_THEM in words else None


def match_option_text(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns the only option whose text is in the reply, ignoring case; None for long replies (M2)."""
    lowered = reply.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    found = [one for one, text in options.items() if text.lower() in lowered]
    return found[0] if len(found) == 1 else None


def match_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns the option named in the reply: by letter, else by text (M3)."""
    return match_letter(reply, options) or match_option_text(reply, options)


def read_answer_line(reply: str) -> str:
    """Returns what the `_COT` data sets match: the letter or the rest of the reply's only line "Answer: ...".

    Without such a line, or with several, returns the reply unchanged.
    """
    lines = [line.strip() for line in reply.strip().split("\n")]
    marked = [line for line in lines if line.startswith("Answer:")]
    if len(marked) != 1:
        return reply
    capitals = {sign for sign in marked[0] if sign in string.ascii_uppercase}
    # the A of "Answer:" counts: only lines that name A, or nothing, have one distinct capital
    return capitals.pop() if len(capitals) == 1 else marked[0].removeprefix("Answer:")


def matches_relaxed(target: str, reply: str) -> bool:
    """Returns ChartQA's relaxed accuracy (M9): numbers within 5 %, all else as text, ignoring case.

    A target of 0 is compared as text, because an error relative to 0 is undefined.
    """
    said, wanted = parse_float(reply), parse_float(target)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= RELATIVE_ERROR
    return reply.lower() == target.lower()


def parse_float(text: str) -> float | None:
    """Returns the number in a text ("12", "12%" as 0.12), None if it is not a number."""
    share = text.endswith("%")
    try:
        return float(text.rstrip("%")) / 100.0 if share else float(text)
    except ValueError:
        return None


def matches_any_relaxed(target: str, reply: str) -> bool:
    """Applies `matches_relaxed` to a target that may be a list literal; strips the reply."""
    return any(matches_relaxed(one, reply.strip()) for one in list_alternatives(target))


def list_alternatives(target: str) -> list[str]:
    """Returns the texts of a list literal, or the target itself."""
    if not target.strip().startswith("["):
        return [target]
    try:
        value = ast.literal_eval(target.strip())
    except (ValueError, SyntaxError):
        return [target]
    return [str(one) for one in value] if isinstance(value, list) else [target]


def is_right_in_all_rotations(golds: Sequence[str], found: Sequence[str | None]) -> bool | None:
    """Returns whether a question is correct in all rotations; None if only a judge could decide a row."""
    if any(one is not None and one != gold for gold, one in zip(golds, found, strict=True)):
        return False
    return True if None not in found else None


def prefetch_mathvista(
    question_type: str, answer_type: str, choices: Sequence[str], gold: str, reply: str
) -> str | None:
    """Returns MathVista's answer if this harness needs no judge; None if it would use one.

    A number equal to the reference counts immediately, unless it is 0, which the harness treats as missing.
    """
    if question_type == "multi_choice":
        return match_choice(reply, letter_choices(choices))
    try:
        if answer_type == "integer":
            whole = int(reply)
            return str(whole) if whole == int(gold) and whole else None
        if answer_type == "float":
            real = float(reply)
            return str(real) if real == float(gold) and real else None
    except ValueError:
        return None  # no number, so the judge has to extract one
    return NONE_TEXT if answer_type not in ("integer", "float") and gold == NONE_TEXT else None


def is_mathvista_right(
    question_type: str, answer_type: str, choices: Sequence[str], gold: str, gold_letter: str, extraction: str
) -> bool:
    """Returns whether an extraction is correct: the letter, or the same number without rounding.

    For lists and texts the harness compares the word "None" with the reference, regardless of the extraction.
    """
    if question_type == "multi_choice":
        return match_choice(extraction, letter_choices(choices)) == gold_letter
    try:
        if answer_type == "integer":
            return int(extraction) == int(gold)
        if answer_type == "float":
            return float(extraction) == float(gold)
    except ValueError:
        return False
    return gold == NONE_TEXT


def letter_choices(choices: Sequence[str]) -> dict[str, str]:
    """Returns options A, B, ... with these texts."""
    return dict(zip(string.ascii_uppercase, choices, strict=False))


def read_vlmeval_grade(judge_reply: str) -> float | None:
    """Returns MM-Vet's score if the judge's whole reply is a number from 0 to 1; None otherwise."""
    try:
        score = float(judge_reply)
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


def has_chinese(text: str) -> bool:
    """Returns whether a text has Chinese characters; the harness then prompts its judge in Chinese."""
    return re.search("[\u4e00-\u9fff]", text) is not None

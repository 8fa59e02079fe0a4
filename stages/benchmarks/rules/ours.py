"""Our rules: what a careful reader would take for the answer, and None where a reader would not know.

Reasoning, answer tags and special tokens are left out first. Order of forms (the first that is there decides; of
several, the last one): the whole reply is a letter with decoration; the last `\\boxed{}`; the last line "Answer: X";
the last "answer is X" with word boundaries; a letter that the reply opens with; "option X"; a lone letter near the end;
the text of one option. All of them take time linear in the reply.
"""

import re
from collections.abc import Collection, Mapping
from fractions import Fraction

from stages.benchmarks.rules import vlmeval
from stages.corpora.final_answers import (
    find_last_answer_line,
    find_last_boxed,
    find_leading_letter,
    find_marked_answer,
    strip_text_commands,
    unwrap_answer,
)
from stages.corpora.numbers import find_last_match, read_number_only

_DECORATION = " \t\n\r.,:;!?*_`'\"$#()[]{}（）。，：、"
_SAID_LETTER = r"\s*+(?:[:：]\s*+)?+[*_(\[{$\"'`（]*+([A-Z])\b(?!['’]|(?:\s++is)?+\s++(?:wrong|incorrect|not)\b)"
_ANSWER_IS = re.compile(
    rf"\b(?:[Aa]nswer(?:\s++is)?+|(?:[Oo]ption|[Cc]hoice)\s++is){_SAID_LETTER}"
    r"|(?:答案(?:应?是|应?为|选|：|:)|选(?:择|项)?[:：]?)\s*+[（(]?([A-Z])(?![A-Za-z])"
)
_OPTION = re.compile(rf"\b(?:[Oo]ption|[Cc]hoice){_SAID_LETTER}")
# "A dog", not "A because": the word is an article.
_ARTICLE = re.compile(r"\bA[^\S\n]++(?!(?:because|since|as|is|seems|looks|fits|due|for|with|from|by|in|on|at)\b)[a-z]")
_DENIED = r"\s++(?:is\s++)?(?:wrong|incorrect|false|not)\b"


def read_choice(reply: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """Returns the option letter in a reply and the rule that found it; (None, "") if there is none.

    A refusal has none. A letter that is not an option ("E" of four) is not counted either.
    """
    text = unwrap_answer(reply)
    if not text or any(refusal in text for refusal in vlmeval.REFUSALS):
        return None, ""
    lone = _read_lone_letter(text, options)
    if lone:
        return lone, "letter"
    for rule, marked in (("boxed", find_last_boxed(text)), ("answer line", find_last_answer_line(text))):
        named = None if marked is None else _match_final_option(marked, options)
        if named:
            return named, rule
    for rule, found in (
        ("answer is", _find_last_letter(_ANSWER_IS, text)),
        ("leading letter", find_leading_letter(text, options)),
        ("option", _find_last_letter(_OPTION, text)),
        ("word", _read_lone_word(text, options)),
    ):
        if found is not None and found in options:
            return found, rule
    named = _match_whole_text(text, options)
    return (named, "option text") if named else (None, "")


def _find_last_letter(pattern: re.Pattern[str], text: str) -> str | None:
    """Returns the letter in the last match of a pattern."""
    found = find_last_match(pattern, text)
    return None if found is None else next(group for group in found.groups() if group)


def _read_lone_word(text: str, letters: Collection[str]) -> str | None:
    """Returns the only option letter that is a word near the end, unless the reply denies it or means an article."""
    letter = vlmeval.match_letter(text, letters)
    if letter == "A" and _ARTICLE.search(text):
        return None
    return None if letter is None or re.search(rf"\b{re.escape(letter)}[)\]*_]*+{_DENIED}", text) else letter


def _read_lone_letter(text: str, letters: Collection[str]) -> str | None:
    bare = strip_text_commands(text).strip(_DECORATION)
    return bare.upper() if len(bare) == 1 and bare.upper() in letters else None


def _match_final_option(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the option of a final answer such as "B", "(b) dog", "dog"."""
    plain = strip_text_commands(text)
    lone = _read_lone_letter(plain, options)
    if lone:
        return lone
    leading = re.match(r"[\s*_(\[{$]*([A-Z])[)\].:,*_]", plain)
    if leading and leading.group(1) in options:
        return leading.group(1)
    return _match_whole_text(plain, options)


def _match_whole_text(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the only option whose text occurs as whole words; texts inside longer matches do not count."""
    lowered = text.casefold()
    found = [
        one for one, option in options.items() if option.strip() and _is_within(option.strip().casefold(), lowered)
    ]
    longest = [
        one for one in found if not any(_is_inside(options[one], options[other]) for other in found if other != one)
    ]
    return longest[0] if len(longest) == 1 else None


def _is_within(option: str, text: str) -> bool:
    left = r"(?<!\w)" if option[0].isascii() and option[0].isalnum() else ""
    right = r"(?!\w)" if option[-1].isascii() and option[-1].isalnum() else ""
    left = r"(?<![\w.])" if option[0].isdigit() else left
    right = r"(?![\w]|\.\d)" if option[-1].isdigit() else right
    return option in text and re.search(left + re.escape(option) + right, text) is not None


def _is_inside(one: str, other: str) -> bool:
    return one.strip().casefold() in other.strip().casefold() and one != other


def read_final_answer(reply: str) -> tuple[str, str]:
    """Returns the answer marked as final, and how: `boxed`, `answer line`, `answer is`, `last line`."""
    text = unwrap_answer(reply)
    marked = find_marked_answer(text)
    return marked or ((text.splitlines() or [""])[-1].strip(" .*"), "last line")


def clean_chart_reply(reply: str) -> str:
    """Returns a ChartQA reply without characters that fail the strict rule: final stop, quotes, `$`, commas."""
    text = unwrap_answer(reply).strip().rstrip(".").strip("\"'“”").strip().lstrip("$").strip()
    return text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", text) else text


_LIST_ITEM = re.compile(r"\s*+(?:'([^'\n]*+)'|\"([^\"\n]*+)\"|([-+]?[\d.][\d.eE+-]*+))\s*+(,\s*+(?=\])|,|(?=\]))")


def read_list(text: str) -> list[str | Fraction] | None:
    """Returns the numbers and quoted texts of a flat list such as "[2014, 'x']"; None if there is no such list."""
    start, end = text.find("["), text.rfind("]")
    if not 0 <= start < end:
        return None
    values: list[str | Fraction] = []
    place = start + 1
    while item := _LIST_ITEM.match(text, place, end + 1):
        number = item.group(3)
        value = (item.group(1) or item.group(2) or "") if number is None else read_number_only(number)
        if value is None:
            return None
        values.append(value)
        place = item.end()
    return values if place == end or not text[place:end].strip() else None


_GRADE = re.compile(
    r"^[\s*\"'`]*(?:score\s*[:=]\s*|correctness\s*[:=]\s*)?(0(?:\.\d)?|1(?:\.0)?)[\s*\"'`.]*$", re.IGNORECASE
)


def read_our_grade(judge_reply: str) -> float | None:
    """Returns a judge's score 0.0, 0.1 ... 1.0 if it is the whole reply; None for prose and other numbers."""
    found = _GRADE.match(unwrap_answer(judge_reply))
    return float(found.group(1)) if found else None

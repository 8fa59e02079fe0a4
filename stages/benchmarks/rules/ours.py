"""Our rules: what a careful reader would take for the answer, and None where a reader would not know.

Order of forms (the first that is there decides; of several, the last one): the whole reply is a letter with decoration;
the last `\\boxed{}`; the last line "Answer: X"; the last "answer is X" with word boundaries; a lone letter near the
end; the text of one option. Reasoning in `<think>` tags is left out.
"""

import re
from collections.abc import Collection, Mapping
from fractions import Fraction

from stages.benchmarks.rules import vlmeval

_THINK_END = "</think>"
_DECORATION = " \t\n\r.,:;!?*_`'\"$#()[]{}（）。，：、"
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER_LINE = re.compile(r"^[\s*_#>]*(?:final\s+)?answer[*_]*\s*[:：][*_]*\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_ANSWER_IS = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?\s*[:：]?\s*[*_(\[{$\"'`]*([A-Z])\b(?!['’]|\s+(?:wrong|incorrect|not)\b)"
    r"|答案(?:是|为|：|:)\s*[（(]?([A-Z])(?![A-Za-z])",
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


def strip_reasoning(reply: str) -> str:
    """Returns the reply after its last `</think>`; an unclosed `<think>` leaves nothing to score."""
    if _THINK_END in reply:
        return reply.rpartition(_THINK_END)[2].strip()
    return "" if reply.lstrip().startswith("<think>") else reply.strip()


def read_choice(reply: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """Returns the option letter in a reply and the rule that found it; (None, "") if there is none.

    A refusal has none. A letter that is not an option ("E" of four) is not counted either.
    """
    text = strip_reasoning(reply)
    if not text or any(refusal in text for refusal in vlmeval.REFUSALS):
        return None, ""
    lone = _read_lone_letter(text, options)
    if lone:
        return lone, "letter"
    for rule, pattern in (("boxed", _BOXED), ("answer line", _ANSWER_LINE)):
        ends = pattern.findall(text)
        named = _match_final_option(ends[-1], options) if ends else None
        if named:
            return named, rule
    said = [first or second for first, second in _ANSWER_IS.findall(text)]
    if said and said[-1] in options:
        return said[-1], "answer is"
    word = vlmeval.match_letter(text, options)
    if word is not None and word in options:
        return word, "word"
    named = _match_whole_text(text, options)
    return (named, "option text") if named else (None, "")


def _read_lone_letter(text: str, letters: Collection[str]) -> str | None:
    bare = _TEXT_COMMAND.sub(r"\1", text).strip(_DECORATION)
    return bare.upper() if len(bare) == 1 and bare.upper() in letters else None


def _match_final_option(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the option of a final answer such as "B", "(b) dog", "dog"."""
    plain = _TEXT_COMMAND.sub(r"\1", text)
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


_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\w])[-+]?\.\d+")
_UNITS = re.compile(r"^[\s$€£¥]+|[\s%°]+$")


def read_final_answer(reply: str) -> tuple[str, str]:
    """Returns the answer marked as final, and how: `boxed`, `answer line`, `answer is`, `last line`."""
    text = strip_reasoning(reply)
    for rule, pattern in (("boxed", _BOXED), ("answer line", _ANSWER_LINE)):
        ends = pattern.findall(text)
        if ends:
            return _TEXT_COMMAND.sub(r"\1", ends[-1]).strip(" .*$"), rule
    said = re.findall(r"\banswer is:?\s+(.+?)(?:\.(?:\s|$)|\n|$)", text, re.IGNORECASE)
    if said:
        return said[-1].strip(" .*$\"'"), "answer is"
    return (text.splitlines() or [""])[-1].strip(" .*"), "last line"


def read_number(text: str) -> Fraction | None:
    """Returns the last number in a text, exactly; None if there is none. "1,200" is 1200, "$5" is 5, "12 cm" is 12."""
    found = _NUMBER.findall(_UNITS.sub("", text))
    return Fraction(found[-1].replace(",", "")) if found else None


def clean_chart_reply(reply: str) -> str:
    """Returns a ChartQA reply without characters that fail the strict rule: final stop, quotes, `$`, commas."""
    text = strip_reasoning(reply).strip().rstrip(".").strip("\"'“”").strip().lstrip("$").strip()
    return text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", text) else text


_GRADE = re.compile(
    r"^[\s*\"'`]*(?:score\s*[:=]\s*|correctness\s*[:=]\s*)?(0(?:\.\d)?|1(?:\.0)?)[\s*\"'`.]*$", re.IGNORECASE
)


def read_our_grade(judge_reply: str) -> float | None:
    """Returns a judge's score 0.0, 0.1 ... 1.0 if it is the whole reply; None for prose and other numbers."""
    found = _GRADE.match(strip_reasoning(judge_reply))
    return float(found.group(1)) if found else None

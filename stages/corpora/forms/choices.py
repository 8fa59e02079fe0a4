"""Options of a multiple-choice question, and which of them is right."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from stages.corpora.containers.image_files import shorten_value
from stages.corpora.forms.answers import make_text
from stages.corpora.source import RowFault

DIRECTLY = "Answer with the option's letter from the given choices directly."  # as in the benchmarks' prompts
_LETTER = re.compile(r"\s*[\(\[]?\s*([A-Za-z])\s*[\)\].:]?\s*")
_LETTER_FIRST = re.compile(r"\s*[\(\[]?([A-Z])[\)\].:]\s*(.+)", re.DOTALL)
MOST_ANSWER_CHARACTERS = 1000  # that are searched for a letter: the patterns take the square of it on white space
_MOST_CHARACTERS = 100_000  # of options written as one text


def list_options(values: Sequence[Any], field: str) -> list[str]:
    """Returns the options in order: of several columns, or of one that holds a list, an object or a text of it.

    Raises RowFault for what is none.
    """
    given: Any = values[0] if len(values) == 1 else [value for value in values if value not in (None, "")]
    if isinstance(given, str):
        given = _parse(given, field)
    if isinstance(given, Mapping):
        inner = next((given[key] for key in ("text", "texts", "options") if isinstance(given.get(key), list)), None)
        given = inner if inner is not None else [one for one in given.values() if one is not None]
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise RowFault("options are a list", field, shorten_value(given))
    if len(given) > len(ascii_uppercase):
        raise RowFault(f"{len(given)} options, more than {len(ascii_uppercase)}", field, shorten_value(given))
    return [_strip_letter(make_text(one, field) or "", place) for place, one in enumerate(given)]


def _parse(text: str, field: str) -> Any:
    if not text.strip():
        return None
    if len(text) <= _MOST_CHARACTERS and text.lstrip()[:1] in ("[", "{", "("):
        for read in (json.loads, ast.literal_eval):  # MMMU writes lists as Python does
            try:
                return read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    lines = [line for line in re.split(r"\n|(?<=\S)\s*;\s*|\s\|\s", text.strip()) if line.strip()]
    if len(lines) < 2:
        raise RowFault("options are a list", field, shorten_value(text))
    return lines


def _strip_letter(option: str, place: int) -> str:
    """Returns "red" for "B. red", if B is the letter of the place."""
    found = _LETTER_FIRST.fullmatch(option)
    return found.group(2).strip() if found and found.group(1) == ascii_uppercase[place] else option.strip()


def find_letter(answer: Any, options: Sequence[str], base: int | None, field: str) -> str | None:
    """Returns the letter of the right option for its letter, its text or its number.

    `base` is the number of the first option where answers are numbers; with None a text comes before a number. None
    for null. Raises RowFault for an answer that is none of the options.
    """
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, list | tuple):
        raise RowFault("several right options; one is supported", field, shorten_value(answer))
    text = make_text(answer, field)
    if text is None:
        return None
    letters = ascii_uppercase[: len(options)]
    folded = [option.strip().casefold() for option in options]
    place = int(text) - (base or 0) if re.fullmatch(r"\s*\d{1,2}\s*", text) else -1
    if base is not None and 0 <= place < len(options):
        return letters[place]
    if folded.count(text.strip().casefold()) == 1:
        return letters[folded.index(text.strip().casefold())]
    if base is None and 0 <= place < len(options):
        return letters[place]
    for pattern in (_LETTER, _LETTER_FIRST):
        found = pattern.fullmatch(text.strip()[:MOST_ANSWER_CHARACTERS])
        if found and found.group(1).upper() in letters:
            return found.group(1).upper()
    shown = ", ".join(options)
    raise RowFault(
        f"none of the options {letters[:1]} to {letters[-1:]} ({shorten_value(shown)})", field, shorten_value(answer)
    )


def find_base(pairs: Sequence[tuple[Any, Sequence[str]]]) -> int | None:
    """Returns the number of the first option if the answers of these rows are numbers of options, else None.

    1 if some answer is the count of its options and none is 0; None as well if each number is the text of an option.
    """
    numbers = []
    for answer, options in pairs:
        whole = isinstance(answer, int) and not isinstance(answer, bool)
        if not whole and not (isinstance(answer, str) and re.fullmatch(r"\s*\d{1,2}\s*", answer)):
            return None
        numbers.append((int(answer), len(options), not whole and answer.strip() in options))
    if not numbers or all(named for _, _, named in numbers):
        return None
    if all(0 <= number < count for number, count, _ in numbers):
        return 0
    return 1 if all(0 < number <= count for number, count, _ in numbers) else None


def ask(question: str, options: Sequence[str]) -> str:
    """Returns the question with its options by letter, as benchmarks ask; options that it names are not repeated."""
    if all(option and option in question for option in options):
        return question
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    return f"{question.rstrip()}\n{listed}\n{DIRECTLY}"

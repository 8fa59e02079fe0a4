"""What kind of answer a question asks for: a function of its reference and options alone, never of an answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from stages.config.answer_scorer import ScorerName
from stages.corpora.quantities import Quantity, read_quantity
from stages.corpora.rows import Question
from stages.corpora.scoring import normalise_text

AnswerKind = Literal["choice", "number", "yes/no", "list", "short text", "free text"]
SHORT_WORDS, SHORT_CHARACTERS = 5, 48  # of a reference that is compared as text; longer ones are prose
LONGEST_READ_QUESTION = 20_000  # characters in which options are looked for
YES_OR_NO = {"yes": "yes", "no": "no", "true": "true", "false": "false"}
# "A. cat", "(A) cat", "A: cat", at the start of a line or behind white space
_OPTION = re.compile(r"(?<!\S)(?:\(([A-Z])\)|([A-Z])[.):：])(?=\s*[^\s])")
_LETTER = re.compile(r"[\s*_(\[{]*+([A-Z])[\s*_)\]}.:]*+")
_LETTER_AND_TEXT = re.compile(r"\s*+[(\[]?+([A-Z])[.):\]]++\s++(\S.*+)", re.DOTALL)
_LIST_MARK = re.compile(r"\s*(?:,|;|\n)\s*(?:and\s+)?|\s+and\s+")
_LIST_ITEM_WORDS = 3


@dataclass(frozen=True)
class Reference:
    """What a question accepts as its answer."""

    text: str
    accepted: tuple[str, ...] = ()  # other answers that count as well, or those of several people
    options: Mapping[str, str] = field(default_factory=dict)  # by letter
    question: str = ""
    scorer: ScorerName = "auto"

    @cached_property
    def kind(self) -> AnswerKind:
        """The kind of answer that is asked for."""
        return find_answer_kind(self.text, self.options)

    @cached_property
    def letter(self) -> str | None:
        """The option that is right; None if the reference is none."""
        return find_gold_letter(self.text, self.options)

    @cached_property
    def quantity(self) -> Quantity | None:
        """The reference as a number with its unit; None if it is none."""
        return read_quantity(self.text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All accepted answers, the reference first, each once."""
        return tuple(dict.fromkeys((self.text, *self.accepted)))


def read_reference(question: Question) -> Reference:
    """Returns what a question accepts; its options are read from its text."""
    accepted = question.answers if question.answers != (question.answer,) else ()
    return Reference(question.answer, accepted, read_options(question.text), question.text, question.scorer)


def find_answer_kind(reference: str, options: Mapping[str, str]) -> AnswerKind:
    """Returns the kind of a reference.

    A letter, or the text of an option, is a choice; a number with or without unit a number; yes, no, true, false are
    yes/no; short items with commas or "and" between them a list; up to SHORT_WORDS words short text; the rest free
    text.
    """
    if find_gold_letter(reference, options) is not None:
        return "choice"
    if read_quantity(reference) is not None:
        return "number"
    plain = normalise_text(reference)
    if plain in YES_OR_NO:
        return "yes/no"
    if len(split_items(reference)) > 1:
        return "list"
    short = len(plain.split()) <= SHORT_WORDS and len(plain) <= SHORT_CHARACTERS
    return "short text" if short else "free text"


def find_gold_letter(reference: str, options: Mapping[str, str]) -> str | None:
    """Returns the option that a reference names by letter ("B", "(B)", "B. dog") or by its whole text; None otherwise.

    Without options a lone capital is a letter.
    """
    letter = _LETTER.fullmatch(reference)
    if letter is not None and (letter[1] in options or not options):
        return letter[1]
    if not options:
        return None
    both = _LETTER_AND_TEXT.fullmatch(reference)
    if both is not None and normalise_text(options.get(both[1], "")) == normalise_text(both[2]):
        return both[1]
    named = [one for one, text in options.items() if normalise_text(text) == normalise_text(reference)]
    return named[0] if len(named) == 1 else None


def read_options(question: str) -> dict[str, str]:
    """Returns the options A, B, ... in the text of a question by letter; empty if it has none.

    The last row of letters that starts with A and goes on without a gap counts, if no text in it is empty. The last
    option ends with its line.
    """
    text = question[-LONGEST_READ_QUESTION:]
    row: list[tuple[str, int, int]] = []  # letter, where its mark starts, where its text starts
    best: list[tuple[str, int, int]] = []
    for mark in _OPTION.finditer(text):
        letter = mark[1] or mark[2]
        if letter == "A":
            row = []
        if ord(letter) - ord("A") == len(row):
            row.append((letter, mark.start(), mark.end()))
            best = row if len(row) > 1 else best
    options: dict[str, str] = {}
    for place, (letter, _, start) in enumerate(best):
        end = best[place + 1][1] if place + 1 < len(best) else len(text)
        options[letter] = text[start:end].strip().split("\n")[0].strip().rstrip(",;")
    return options if all(options.values()) else {}


def split_items(text: str) -> list[str]:
    """Returns the items of a list such as "red, white and blue" in their order; [] if it is none.

    An item has at most three words: "first, put the kettle on" is no list.
    """
    plain = text.strip().strip("[](){}.").strip()
    items = [normalise_text(item.strip("'\"")) for item in _LIST_MARK.split(plain)] if len(plain) < 1000 else []
    fits = len(items) > 1 and all(item and len(item.split()) <= _LIST_ITEM_WORDS for item in items)
    return items if fits else []

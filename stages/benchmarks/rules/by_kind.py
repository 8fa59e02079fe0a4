"""Scores an answer by the rule for the kind of its reference, and says whether a reader could doubt the result.

A rule that is sure decides. Where it is not (several numbers, "7 or 8", another wording, a unit that nobody asked for),
a judge decides if there is one; else the rule's best guess counts. All rules take time linear in the reply.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from stages.benchmarks.rules import named_scores, ours
from stages.corpora.answer_kinds import YES_OR_NO, AnswerKind, Reference, split_items
from stages.corpora.final_answers import LONGEST_REPLY, find_leading_letter, find_marked_answer, unwrap_answer
from stages.corpora.quantities import (
    Quantity,
    find_number_words,
    find_quantities,
    find_units,
    has_same_stem,
    names_one_of,
)
from stages.corpora.scoring import is_correct, normalise_text

NO_ANSWER, TOO_LONG_REPLY = "no answer", "too long"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|likely|might|may|could|would|either|or|unsure|uncertain|unclear|"
    r"not (?:sure|certain|clear|visible|possible)|hard to (?:say|tell)|difficult to|can(?:not|['’]?t)|unable|"
    r"don['’]?t know|unknown|impossible|depends|guess|if|unless|except|but|however|although|wrong|incorrect|false)\b"
    r"|\?",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|none|without|cannot|rather than|instead of|except|excluding|other than)\b|n['’]t\b",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\brather than|\binstead of|\bother than)\s+(?:[\w'’]+\s+){0,2}\W?$", re.I
)
_BOUND = re.compile(
    r"(?:\b(?:more|less|fewer|greater|higher|lower) than|\b(?:over|under|above|below|nearly|almost|at least|at most|"
    r"up to|not only|minimum of|maximum of))\s*\W?$",
    re.IGNORECASE,
)
_BOUND_BEHIND = re.compile(r"\s*+(?:or|and)\s++(?:more|less|fewer|above|below|older|younger)\b", re.IGNORECASE)
_VAGUE = re.compile(
    r"\b(?:after|before|since|until|till|by|late|early|mid|circa)\s*\W?$|(?<![-=<>])[<>≤≥]\s*$", re.IGNORECASE
)
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])\d{1,9},\d{1,2}(?![\d,])")
_JOINED = re.compile(r"\d\S*\s+(?:or|to|and|through|until)\s+\W?\d", re.IGNORECASE)
_REMARK = re.compile(r"\([^()]*+\)")
_FIRST_WORD = re.compile(r"\W*+(\w++(?:['’]\w++)?+)(\s*+[^\w\s]?)")
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_YES = {"yes": "yes", "yeah": "yes", "yep": "yes", "yup": "yes", "no": "no", "nope": "no", "nah": "no"}
_AFTER_NO = frozenset(
    [
        "it",
        "its",
        "it's",
        "it’s",
        "there",
        "they",
        "he",
        "she",
        "the",
        "this",
        "that",
        "these",
        "those",
        "i",
        "you",
        "we",
        "none",
        "neither",
    ]
)
_NO_PHRASES = frozenset(("doubt", "idea", "way", "less", "fewer", "more", "later", "matter", "wonder", "question"))
_SENTENCE_END = re.compile(r"[.!?。]\s|\n")
_NAMED = (
    r"\b(?:is|are|was|were|says|say|reads|shows|called|named|it's|that's|they're)\s+(?:an?\s+|the\s+)?[\"'“]?{}\W*$"
)
LONGEST_SENTENCE = 120  # characters of a reply in which the reference is looked for
_NEAR = 60  # characters before and behind a number in which doubts are looked for
_END_READ = 2000  # characters at the start and at the end of a long text in which words of doubt are looked for
SURE_DIGITS = 2  # behind the point of a reference, from which on more digits in an answer are taken as rounded
_NEAR_CONVERSION = Fraction(1, 50)  # relative difference of converted units up to which a rule is not sure
_ALIKE_UNITS = (
    {"mass", "pounds sterling"},
    {"degrees", "degrees Celsius"},
    {"degrees", "degrees Fahrenheit"},
    {"time", "months"},
)


@dataclass(frozen=True)
class RuleMark:
    """What a rule makes of an answer."""

    score: float  # 0 to 1; the best guess where the rule is not sure
    sure: bool
    rule: str  # the kind of answer, the scorer, or why there is none


def score_by_rule(reply: str, reference: Reference) -> RuleMark:
    """Returns the score of a reply by the rule of its reference's kind or scorer.

    Of several accepted answers the best counts. A reply without content is wrong, as is one of more than LONGEST_REPLY
    characters.
    """
    text = unwrap_answer(reply)
    if len(text) > LONGEST_REPLY:
        return RuleMark(0.0, True, TOO_LONG_REPLY)
    if not re.search(r"\w", text) and re.search(r"\w", reference.text):
        return RuleMark(0.0, True, NO_ANSWER)
    if reference.scorer != "auto" or len(reference.accepted) == named_scores.VQA_PEOPLE:
        return _score_by_name(text, reference)
    marks = [_score_one(reply, text, _take_one(reference, one)) for one in reference.texts]
    best = max(marks, key=lambda mark: (mark.sure and mark.score, not mark.sure, mark.score))
    return replace(best, rule=reference.kind)


def _take_one(reference: Reference, text: str) -> Reference:
    return (
        reference if text == reference.text and not reference.accepted else replace(reference, text=text, accepted=())
    )


def _score_by_name(text: str, reference: Reference) -> RuleMark:
    marked = find_marked_answer(text)
    said = text if marked is None else marked[0]
    people = reference.accepted or reference.texts
    if reference.scorer in ("auto", "vqa"):
        return RuleMark(named_scores.compute_vqa_accuracy(said, people), True, "vqa")
    score = {
        "anls": named_scores.compute_anls,
        "relaxed": named_scores.is_any_relaxed,
        "exact": named_scores.is_any_text,
    }[reference.scorer]
    return RuleMark(float(score(said, reference.texts)), True, reference.scorer)


def _score_one(reply: str, text: str, reference: Reference) -> RuleMark:
    marked = find_marked_answer(text)
    said = text if marked is None else marked[0]
    if reference.kind == "choice":
        score, sure = _score_choice(reply, text, said, reference)
    else:
        score, sure = _RULES[reference.kind](text, said, reference)
    return RuleMark(float(score), sure, reference.kind)


def _is_doubted(text: str) -> bool:
    return _HEDGE.search(_cut_middle(text)) is not None


def _is_denied(text: str) -> bool:
    return _NEGATION.search(_cut_middle(text)) is not None


def _cut_middle(text: str) -> str:
    """Returns the start and the end of a long text: words of doubt are looked for there."""
    return text if len(text) <= 2 * _END_READ else f"{text[:_END_READ]} {text[-_END_READ:]}"


# --- choice -----------------------------------------------------------------------------------------------------------


def _score_choice(reply: str, text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    gold, options = reference.letter, reference.options
    if not options:
        return _score_letter(text, said, str(gold))
    found, rule = ours.read_choice(reply, options)
    if found is None:
        return False, False
    loose = rule in ("answer is", "option", "word", "option text")
    denied = loose and _is_denied(text)
    another = _names_another(said, found, reference)
    inside = rule == "option text" and not _is_named_at_the_end(text, reference.options[found])
    doubted = denied or another or inside or (loose and _is_doubted(text))
    return found == gold and not another and not (denied and rule in ("word", "option text")), not doubted


def _is_named_at_the_end(text: str, option: str) -> bool:
    """Returns whether a reply is an option's text, or its first sentence ends with it: "an apple pie" is no "apple"."""
    first = re.split(r"[.!?。,;]\s|\n", text[:LONGEST_SENTENCE], maxsplit=1)[0]
    wanted = normalise_text(option)
    return any(
        re.search(rf"(?<!\w){re.escape(wanted)}\W*$", form.casefold()) is not None for form in (first, text[-200:])
    )


def _names_another(said: str, letter: str, reference: Reference) -> bool:
    """Returns whether the line of a letter goes on with the text of another option, or names several letters."""
    line = next((line for line in said.splitlines() if re.search(rf"\b{letter}\b", line)), "")
    rest = normalise_text(re.split(rf"\b{letter}\b", line, maxsplit=1)[-1].lstrip(" .:)*]-–—_,=").split(". ")[0])
    another = any(
        normalise_text(text) in (rest, rest.removeprefix("is ").removeprefix("the "))
        for one, text in reference.options.items()
        if one != letter and normalise_text(text) != normalise_text(reference.options[letter])
    )
    joined = re.search(rf"\b{letter}\)?\s*(?:or|and|/|,|&)\s*\(?[A-Z]\b(?!['’])", line)
    return another or joined is not None


def _score_letter(text: str, said: str, gold: str) -> tuple[bool, bool]:
    """Scores a lone letter as reference, without options."""
    bare = normalise_text(said)
    if len(bare) == 1:
        return bare.upper() == gold, True
    found = find_leading_letter(said, _LETTERS)
    if found is not None:
        return found == gold, _HEDGE.search(said[:LONGEST_SENTENCE]) is None or found != gold
    return is_correct(text, gold), False


# --- yes or no --------------------------------------------------------------------------------------------------------


def _score_yes_or_no(text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    wanted = YES_OR_NO[normalise_text(reference.text)]
    first = _FIRST_WORD.match(said)
    guess = is_correct(text, reference.text)
    if first is None:
        return guess, False
    names = _YES if wanted in ("yes", "no") else {"true": "true", "false": "false"}
    meant = names.get(first[1].casefold())
    if meant is None:
        return guess, False
    rest = said[first.end(1) :]
    words = [word.casefold().replace("’", "'") for word in _WORD.findall(rest[:1000])]
    others = any(names.get(word, meant) != meant for word in words)
    goes_on = bool(words) and not first[2].strip()
    odd = meant == "no" and goes_on and words[0] not in _AFTER_NO
    denied = meant == "yes" and _NEGATION.search(_SENTENCE_END.split(rest, maxsplit=1)[0]) is not None
    doubted = _HEDGE.search(_SENTENCE_END.split(rest, maxsplit=2)[0]) is not None or "?" in first[2]
    turned = others or denied or (odd and words[0] in _NO_PHRASES)
    return meant == wanted and not turned, not (others or odd or denied or doubted)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _score_number(text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    wanted = reference.quantity
    assert wanted is not None
    outside = _REMARK.sub(" ", said)
    found = find_quantities(outside)
    if not found and outside != said:
        outside = said
        found = find_quantities(said)
    words = [value for value in find_number_words(outside[-2000:]) if value != 1 or len(outside.split()) <= 2]
    if not found:
        return _score_number_words(outside, words, wanted)
    kept = [one for one in found if _NEGATED.search(outside[max(0, one.start - _NEAR) : one.start]) is None]
    if not kept:
        return False, False
    last = kept[-1]
    same, sure = _compare(last, wanted, outside, reference.question)
    alone = all(one.base == last.base for one in kept) and all(value == last.value for value in words)
    if not alone and not same and not _occurs(wanted, kept, words):
        alone = True  # none of its numbers is the right one
    near = outside[max(0, last.start - _NEAR) : last.end + _NEAR]
    before = outside[max(0, last.start - _NEAR) : last.start]
    joined = _JOINED.search(outside[max(0, last.start - _NEAR) : last.end]) is not None
    if same and (joined or _BOUND.search(before) or _BOUND_BEHIND.match(outside, last.end)):
        return False, False
    doubted = (
        _HEDGE.search(near) is not None
        or (len(kept) < len(found) and not same)
        or _VAGUE.search(before) is not None
        or _DECIMAL_COMMA.search(near) is not None
        or ("/" in outside[last.start : last.end] and not same)  # may be a date
    )
    return same, sure and alone and not doubted


def _occurs(wanted: Quantity, found: list[Quantity], words: list[int]) -> bool:
    return any(one.value == wanted.value or one.base == wanted.base for one in found) or wanted.value in words


def _score_number_words(said: str, words: list[int], wanted: Quantity) -> tuple[bool, bool]:
    """Scores a reply without digits."""
    if len(set(words)) != 1 or _is_doubted(said) or _is_denied(said):
        return bool(words) and words[-1] == wanted.value and not _is_doubted(said), False
    same = words[0] == wanted.value
    return same, (same or wanted.value < 100) and not wanted.unit and len(said) <= LONGEST_SENTENCE


def _compare(said: Quantity, wanted: Quantity, text: str, question: str) -> tuple[bool, bool]:
    """Returns whether two quantities are the same, and whether that is sure."""
    close = _is_close(said, wanted)
    if close and said.value != wanted.value and wanted.digits < SURE_DIGITS:  # 1.83 for 1.8: another one, or rounded
        return True, False
    if wanted.unit and said.unit:
        return _compare_units(said, wanted, close)
    percent = "per cent" in (wanted.unit, said.unit)
    if percent and not close and (said.value * 100 == wanted.value or wanted.value * 100 == said.value):
        return False, False
    if wanted.unit:
        plain = wanted.unit in ("per cent", "dollars", "euros", "pounds sterling", "yen")
        named = find_units(question).get(wanted.unit) == wanted.factor
        return close and not said.noun, (plain or named or not close) and not said.noun
    if said.unit:
        factor = find_units(question).get(said.unit)
        if factor is not None:
            return said.base == wanted.value * factor or (close and factor == said.factor), True
        return close, percent and close
    if wanted.noun and said.noun:
        same = has_same_stem(wanted.noun, said.noun) or names_one_of(wanted.noun, _read_behind(said, text))
        return close and same, same or not close
    if said.noun and close:
        return True, names_one_of(question, f"{said.noun} {_read_behind(said, text)}")
    return close, True


def _read_behind(said: Quantity, text: str) -> str:
    return " ".join(text[said.end : said.end + _NEAR].split()[:3])


def _compare_units(said: Quantity, wanted: Quantity, close: bool) -> tuple[bool, bool]:
    if said.unit != wanted.unit:
        return False, {said.unit, wanted.unit} not in _ALIKE_UNITS
    if said.factor == wanted.factor:
        return close, True
    half = _find_tolerance(wanted) * wanted.factor
    same = abs(said.base - wanted.base) <= half
    near = wanted.base != 0 and abs(said.base - wanted.base) <= abs(wanted.base) * _NEAR_CONVERSION
    return same, same or not near


def _is_close(said: Quantity, wanted: Quantity) -> bool:
    """Returns whether `said` is `wanted` within half of the last digit that `wanted` is written with.

    Whole numbers are compared exactly.
    """
    return abs(said.value - wanted.value) <= _find_tolerance(wanted)


def _find_tolerance(wanted: Quantity) -> Fraction:
    return Fraction(1, 2 * 10**wanted.digits) if wanted.digits else Fraction(0)


# --- text -------------------------------------------------------------------------------------------------------------


def _is_same_text(text: str, said: str, reference: Reference) -> bool:
    wanted = _join_hyphens(normalise_text(reference.text))
    return any(_join_hyphens(normalise_text(form)) == wanted for form in (text, said)) or is_correct(
        text, reference.text
    )


def _join_hyphens(text: str) -> str:
    return re.sub(r"(?<=\w)[-‐‑](?=\w)", " ", text).replace("’", "'")


def _score_short_text(text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    if _is_same_text(text, said, reference):
        whole = _join_hyphens(normalise_text(said)) == _join_hyphens(normalise_text(reference.text))
        denied = not whole and _is_denied(said)
        return not denied, whole or not (denied or _is_doubted(said))
    return _ends_with_reference(said, reference.text), False


def _ends_with_reference(said: str, reference: str) -> bool:
    """Returns whether one short sentence without doubt names the reference at its end: "The car is red." """
    if len(said) > LONGEST_SENTENCE or _SENTENCE_END.search(said) or _NEGATION.search(said) or _HEDGE.search(said):
        return False
    named = _NAMED.format(re.escape(normalise_text(reference)))
    return re.search(named, " ".join(said.casefold().replace("’", "'").split())) is not None


def _score_list(text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    if _is_same_text(text, said, reference):
        return True, True
    wanted, items = split_items(reference.text), split_items(said)
    if wanted == items:
        return True, True
    return bool(items) and sorted(wanted) == sorted(items), False


def _score_free_text(text: str, said: str, reference: Reference) -> tuple[bool, bool]:
    same = _is_same_text(text, said, reference)
    return same, same


_RULES: dict[AnswerKind, Callable[[str, str, Reference], tuple[bool, bool]]] = {
    "yes/no": _score_yes_or_no,
    "number": _score_number,
    "list": _score_list,
    "short text": _score_short_text,
    "free text": _score_free_text,
}

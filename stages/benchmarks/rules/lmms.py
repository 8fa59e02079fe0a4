"""The rules of lmms-eval 0.7.3, re-implemented from their description."""

import re
import string
from collections.abc import Collection, Mapping, Sequence

from stages.benchmarks.rules.vlmeval import FAILED_CALL

DEFAULT_LETTERS = "ABCDEFGH"
_PHRASES = (
    *(
        f"{article}{word} is"
        for word in (
            "answer",
            "correct answer",
            "best answer",
            "correct option",
            "best option",
            "choice",
            "correct choice",
        )
        for article in ("the ", "")
    ),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# Confidence of a form; the highest wins, then the last position, then the first option.
_START, _END, _PHRASE, _BETWEEN, _STOP, _COLON, _CLOSED, _BLANK, _ANYWHERE = 10, 9, 7, 6, 5, 4, 3, 2, 0


def find_any_letter(reply: str, letters: Sequence[str] = DEFAULT_LETTERS) -> str:
    """Returns the option letter in the most confident form, "" if there is none (M4)."""
    if not reply.strip():
        return ""
    bare = reply.strip()
    for sign in ",.!?;:'\"":
        bare = bare.strip(sign)
    text = f" {bare} "
    found = [
        *_find_formed_letters(text, letters),
        *_find_letters_after_phrases(text, letters),
        *_find_letters_at_ends(text, letters),
    ]
    found = found or [(_ANYWHERE, text.rfind(one), one) for one in letters if one in text]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else ""


Candidate = tuple[int, int, str]  # confidence, position, letter


def _find_formed_letters(text: str, letters: Sequence[str]) -> list[Candidate]:
    forms = ((_BETWEEN, "({})"), (_STOP, "{}."), (_COLON, "{}:"), (_CLOSED, "{})"), (_BLANK, "{} "))
    marks = [(sure, form.format(one), one) for sure, form in forms for one in letters]
    return [(sure, text.rfind(mark), one) for sure, mark, one in marks if mark in text]


def _find_letters_after_phrases(text: str, letters: Sequence[str]) -> list[Candidate]:
    """Returns every letter after a phrase, also within words: "The answer is B, not C" names B and C."""
    lowered = text.lower()
    places = [(lowered.find(phrase), len(phrase)) for phrase in _PHRASES]
    behind = [start + length for start, length in places if start != -1]
    found = [(_PHRASE, text.find(one, start), one) for start in behind for one in letters]
    return [candidate for candidate in found if candidate[1] != -1]


def _find_letters_at_ends(text: str, letters: Sequence[str]) -> list[Candidate]:
    bare = text.strip()
    starts = [one for one in letters if bare.startswith(one) and (len(bare) == 1 or not bare[1].isalpha())]
    ends = [one for one in letters if bare.endswith(one) and (len(bare) == 1 or not bare[-2].isalpha())]
    return [*((_START, 0, one) for one in starts), *((_END, len(text) - 1, one) for one in ends)]


def find_mmmu_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns MMMU's letter: in brackets, else before a blank, else before a full stop, else by text (M5, this form).

    Returns None where the harness picks a random letter. Of several, the last one counts, by the position of " X " (or
    the text).
    """
    text = reply
    for sign in ",.!?;:'":
        text = text.strip(sign)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [one for one in options if form.format(one) in text]
        if found:
            return max(found, key=lambda one: text.rfind(place.format(one)))
    if len(text.split()) <= 5:
        return None
    lowered = text.lower()
    named = [one for one, option in options.items() if option.lower() in lowered]
    return max(named, key=lambda one: lowered.rfind(options[one].lower())) if named else None


def find_blink_letter(reply: str, letters: str) -> str:
    """Returns BLINK's letter (M7), or "".

    Order: a first line that is little more than a letter, the last "answer is X", the last "(X)", a leading X.
    """
    text, valid = reply.strip(), f"[{re.escape(letters)}]"
    first_line = text.split("\n", 1)[0].strip()
    bare = re.match(rf"^\(?({valid})\)?[\.\s:,)]*$", first_line, re.IGNORECASE) if len(first_line) <= 4 else None
    if bare:
        return bare.group(1).upper()
    said = re.findall(rf"answers?(?:\s++is)?+\s*+(?:[:\-]\s*+)?+\(?+({valid})\)?(?![A-Za-z])", text, re.IGNORECASE)
    said = said or re.findall(rf"\(({valid})\)", text)
    if said:
        return str(said[-1]).upper()
    leading = re.match(rf"[\(\s]*({valid})", text, re.IGNORECASE)
    return leading.group(1).upper() if leading else ""


_LETTER_STOP = re.compile(r"^\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_ai2d(reply: str) -> str:
    """Returns the text that AI2D compares with the letter: "X. ..." as X, no punctuation, lower case (M8)."""
    shortened = _LETTER_STOP.match(reply)
    text = shortened.group(1) if shortened else reply
    # this harness compares with numpy, which drops trailing NUL characters
    return text.rstrip("\0").lower().translate(_NO_PUNCTUATION).rstrip("\0")


def read_first_character(reply: str) -> str:
    """Returns the first character of the reply, which SEED benchmarks compare ignoring case (M6)."""
    return reply.strip()[:1]


def find_mmbench_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns MMBench's option: a letter that is a word, a letter in one of a few decorations, or an option's text.

    `E` counts as a letter regardless of the options. "A" in a reply of more than three words may be an article; in that
    case only decorated letters count.
    """
    return _find_mmbench_letter(reply) or _find_mmbench_text(reply, options)


_DECORATED = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def _find_mmbench_letter(reply: str) -> str | None:
    if FAILED_CALL in reply:
        return None
    words = reply.split()
    distinct = frozenset(words)
    bare = [one for one in "ABCDE" if one in distinct]
    if len(bare) == 1 and not ("A" in distinct and len(words) > 3):
        return bare[0]
    for form in _DECORATED:
        found = [one for one in "ABCDE" if form.format(one) in distinct]
        if len(found) == 1:
            return found[0]
    return None


def _find_mmbench_text(reply: str, options: Mapping[str, str]) -> str | None:
    lowered = reply.lower()
    named = [one for one, text in options.items() if text.lower() in lowered]
    return named[0] if len(named) == 1 else None


def is_mmbench_right_in_all_rotations(
    golds: Sequence[str], replies: Sequence[str], options: Sequence[Mapping[str, str]]
) -> bool:
    """Returns whether a question is correct in all rotations, without a judge (`mmbench_en_dev_static`)."""
    found = [find_mmbench_choice(reply, texts) for reply, texts in zip(replies, options, strict=True)]
    if any(one is not None and one != gold for gold, one in zip(golds, found, strict=True)):
        return False
    rest = [
        (gold, reply, texts)
        for gold, reply, texts, one in zip(golds, replies, options, found, strict=True)
        if one is None
    ]
    return all(find_any_letter(reply, sorted(texts)) == gold for gold, reply, texts in rest)


def is_realworldqa_right(reply: str, gold: str) -> bool:
    """Returns RealWorldQA's result: A to D by `find_any_letter`, other golds as text without a final full stop."""
    wanted = gold.strip()
    if wanted.upper() in ("A", "B", "C", "D"):
        return find_any_letter(reply, "ABCD") == wanted.upper()
    return reply.lower().strip().rstrip(".") == wanted.lower()


def extract_mathvista_quickly(question_type: str, answer_type: str, choices: Collection[str], reply: str) -> str | None:
    """Returns MathVista's extraction without a judge: the reply if it is a choice or a number, else None."""
    if question_type == "multi_choice" and reply in choices:
        return reply
    try:
        if answer_type == "integer":
            return str(int(reply))
        if answer_type == "float":
            return str(float(reply))
    except ValueError:
        pass  # no number: the judge has to extract one
    return None


def normalise_mathvista(
    question_type: str, answer_type: str, choices: Sequence[str], precision: float | None, extraction: str
) -> str | None:
    """Returns MathVista's extraction in the form of the reference (M11): an option's text, a number, a list.

    Returns None if it has no such form. Numbers are integers or rounded. An option that is not named is replaced by the
    nearest one by edit distance, however far. If the precision is not a Python integer (1.0, as stored in the data
    set), `round` fails, and so do all such rows.
    """
    if question_type == "multi_choice":
        return _find_nearest_choice(extraction.strip(), choices)
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), precision))  # type: ignore[arg-type]  # a float on purpose, see above
    except (ValueError, OverflowError, TypeError):
        return None
    return extraction


def _find_nearest_choice(extraction: str, choices: Sequence[str]) -> str:
    bracketed = re.search(r"\(([a-zA-Z])\)", extraction)
    text = bracketed.group(1).upper() if bracketed else extraction
    places = {one: place for place, one in enumerate(string.ascii_uppercase[: len(choices)])}
    if text in places:
        return choices[places[text]]
    return min(choices, key=lambda one: edit_distance(text, one))


def edit_distance(one: str, other: str) -> int:
    """Returns the Levenshtein distance in characters: Hyyrö's bit-parallel form, a few operations a character."""
    places: dict[str, int] = {}
    for place, character in enumerate(other):
        places[character] = places.get(character, 0) | 1 << place
    last, every = 1 << len(other) >> 1, (1 << len(other)) - 1
    more, less, distance = every, 0, len(other)  # columns where the row above rises, and where it falls
    for character in one:
        same = places.get(character, 0)
        zero = (((same & more) + more) ^ more) | same | less
        rises, falls = less | ~(zero | more) & every, more & zero
        distance += bool(rises & last) - bool(falls & last) if other else 1
        rises = (rises << 1 | 1) & every
        more, less = (falls << 1 | ~(zero | rises)) & every, rises & zero
    return distance


def is_mathvista_equal(normal: str | None, gold: str) -> bool:
    """Returns whether a normalised extraction equals the reference, as text."""
    return str(normal).strip() == gold.strip()


def read_lmms_grade(judge_reply: str) -> float | None:
    """Returns MM-Vet's score: the text before the first blank as a number from 0 to 1; None otherwise."""
    try:
        score = float(judge_reply.strip().split(" ")[0])
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None

"""Whether a teacher reads the student's tokens: what distillation on the student's own answers needs.

The log probability of a token under another model is that of the same text only if both models have one vocabulary and
split texts alike. Prompts may differ, since each model is asked in its own template with its own image tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.job.bounded import show_value
from stages.job.failure import Failure
from stages.vlm.chat import Chat, make_plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Digits, blanks, code, formulas and scripts: where tokenizers with one vocabulary split texts differently.
PROBES = (
    "The sum of 8, 11 and 2026 is 2,045.50%, so it's B).",
    "\\frac{x_1}{2} = \\sqrt{9}\n\n\n\tdef f(x):\r\n        return x**2  # ok",
    "Réponse: 42 ≠ 43 – “so” ½ 数字之和是十六。 Сумма равна ١٦ 🙂",
    " <answer>A</answer>\n",
)
REMEDY = (
    "distil from models with the student's tokenizer only (ril.distillation), or take another objective, which reads "
    "teachers' answers as text"
)


@dataclass(frozen=True)
class SharedIds:
    """How a teacher reads the student's token ids."""

    shared: frozenset[int]  # ids of the same token in both
    ends: tuple[int, int]  # the end-of-turn token of the student, and that of the teacher

    def translate(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns an answer of the student as the teacher writes it; () if it has a token that the teacher lacks."""
        own, other = self.ends
        if not all(number in self.shared or number == own for number in ids):
            return ()
        return tuple(other if number == own else number for number in ids)


def match_ids(student: tuple[str, Chat], teacher: tuple[str, Chat]) -> SharedIds:
    """Returns how the teacher reads the student's ids; each is given by name and chat.

    The ordinary tokens and the merges of both must be equal, and so must be the tokens of PROBES. Added tokens may
    differ: the student's end of a turn stands for the teacher's; others are shared where they are the same.

    Raises Failure, which names both models, what differs and the remedy.
    """
    (name, ours), (other, theirs) = student, teacher
    backends = [chat.tokenizer._tokenizer for chat in (ours, theirs)]
    if line := explain_difference((name, backends[0]), (other, backends[1])):
        raise Failure(line)
    there = {number: token for token, number in theirs.tokenizer.get_vocab().items()}
    known = ours.tokenizer.get_vocab().items()
    return SharedIds(
        frozenset(number for token, number in known if there.get(number) == token),
        (ours.end_token_id, theirs.end_token_id),
    )


def explain_difference(student: tuple[str, "Tokenizer"], teacher: tuple[str, "Tokenizer"]) -> str:
    """Returns why a model cannot score the student's tokens, in one line with the remedy; "" if it can.

    Each is given by name and tokenizer, whose added tokens are not looked at.
    """
    (name, ours), (other, theirs) = student, teacher
    difference = _find_difference(name, make_plain_tokenizer(ours), other, make_plain_tokenizer(theirs))
    if not difference:
        return ""
    return f"ril.distillation: {other} does not have the tokenizer of the student ({name}): {difference}; {REMEDY}"


def _find_difference(name: str, ours: "Tokenizer", other: str, theirs: "Tokenizer") -> str:
    one, two = ours.get_vocab(), theirs.get_vocab()
    if one != two:
        first = min(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
        shown = [str(vocabulary.get(first, "none")) for vocabulary in (one, two)]
        return (
            f"{len(one):,} and {len(two):,} tokens, and {show_value(first)} is token {shown[0]} of {name} and "
            f"{shown[1]} of {other}"
        )
    if _read_merges(ours) != _read_merges(theirs):
        return f"both have {len(one):,} tokens, but they join other pairs to them (merges)"
    for text in PROBES:
        first_ids, other_ids = (one.encode(text, add_special_tokens=False).ids for one in (ours, theirs))
        if first_ids != other_ids:
            return (
                f"{show_value(text)} has {len(first_ids)} tokens of {name} and {len(other_ids)} of {other}: they split "
                "texts differently"
            )
    return ""


def _read_merges(tokenizer: "Tokenizer") -> list[tuple[str, ...]]:
    merges = json.loads(tokenizer.to_str())["model"].get("merges", ())
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]

"""Whether a teacher reads the student's tokens: what distillation on the student's own answers needs.

The log probability of a token under another model is that of the same text only if both models have one vocabulary and
split texts alike. Prompts may differ, since each model is asked in its own template with its own image tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.job.bounded import show_value
from stages.job.failure import Failure
from stages.vlm.chat import Chat

# Digits, blanks, code, formulas and scripts: where tokenizers with one vocabulary split texts differently.
PROBES = (
    "The sum of 8, 11 and 2026 is 2,045.50%, so it's B).",
    "\\frac{x_1}{2} = \\sqrt{9}\n\n\n\tdef f(x):\r\n        return x**2  # ok",
    "Réponse: 42 ≠ 43 – “so” ½ 数字之和是十六。 Сумма равна ١٦ 🙂",
    " <answer>A</answer>\n",
)
_REMEDY = (
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
    if difference := _find_difference(name, ours, other, theirs):
        raise Failure(
            f"ril.distillation: {other} does not have the tokenizer of the student ({name}): {difference}; {_REMEDY}"
        )
    there = {number: token for token, number in theirs.tokenizer.get_vocab().items()}
    known = ours.tokenizer.get_vocab().items()
    return SharedIds(
        frozenset(number for token, number in known if there.get(number) == token),
        (ours.end_token_id, theirs.end_token_id),
    )


def _find_difference(name: str, ours: Chat, other: str, theirs: Chat) -> str:
    """Returns what differs between the tokenizers of two models; "" if they split texts alike."""
    one, two = (chat.tokenizer._tokenizer.get_vocab(with_added_tokens=False) for chat in (ours, theirs))
    if one != two:
        first = min((one.keys() ^ two.keys()) | {token for token in one if one[token] != two.get(token)})
        shown = [f"{vocabulary[first]}" if first in vocabulary else "none" for vocabulary in (one, two)]
        return (
            f"{len(one):,} and {len(two):,} tokens, and {show_value(first)} is token {shown[0]} of {name} and "
            f"{shown[1]} of {other}"
        )
    pairs = [_read_merges(chat) for chat in (ours, theirs)]
    if pairs[0] != pairs[1]:
        return f"both have {len(one):,} tokens, but they join other pairs to them (merges)"
    for text in PROBES:
        if (first_ids := ours.encode_text(text)) != (other_ids := theirs.encode_text(text)):
            return (
                f"{show_value(text)} has {len(first_ids)} tokens of {name} and {len(other_ids)} of {other}: they split "
                "texts differently"
            )
    return ""


def _read_merges(chat: Chat) -> list[Any]:
    model = json.loads(chat.tokenizer._tokenizer.to_str())["model"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]

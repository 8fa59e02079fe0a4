"""Negatives: broken texts made from answers, which the discriminator learns as the student's (label 1).

Eq. 1 teaches two sides only, and a text unlike both gets any logit. A student finds such texts: two answers in a row,
a loop, a part of an answer, or signs in any order would earn the similarity reward.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from stages.adversary.discriminator_model import NEGATIVE, Text, split_by_question


def add_negatives(texts: Sequence[Text], writers: Sequence[str], count: int) -> tuple[list[Text], list[str]]:
    """Returns texts and writers with up to `count` negatives after the texts of each question.

    Texts of one question are adjacent. They determine the draw.
    """
    rest = iter(writers)
    all_texts: list[Text] = []
    all_writers: list[str] = []
    for run in split_by_question(texts):
        made = make_negatives([text.body for text in run], count)
        all_texts += [*run, *(replace(run[0], body=body) for body in made)]
        all_writers += [*(next(rest) for _ in run), *[NEGATIVE] * len(made)]
    return all_texts, all_writers


def make_negatives(answers: Sequence[str], count: int) -> list[str]:
    """Returns `count` broken texts made from the answers to a question; fewer if some are empty or an answer.

    The answers determine the draw; those without text are passed over.
    """
    answers = [answer for answer in answers if answer.strip()]
    if not answers:
        return []
    draw = random.Random("\n".join(answers))
    made = [make(answers, draw).strip() for make in draw.sample(_KINDS * count, count)]
    return [text for text in made if text and text not in answers]


def _concatenate(answers: Sequence[str], draw: random.Random) -> str:
    return draw.choice((" ", "\n", "")).join(draw.choices(answers, k=2))


def _repeat(answers: Sequence[str], draw: random.Random) -> str:
    answer = draw.choice(answers)
    start = draw.randrange(len(answer))
    block = answer[start : draw.randint(start + 1, len(answer))]
    length = draw.randint(len(answer), 3 * len(answer))
    return (block * (length // len(block) + 2))[: max(length, 2 * len(block))]


def _cut(answers: Sequence[str], draw: random.Random) -> str:
    answer = draw.choice(answers)
    return answer[: draw.randrange(len(answer))]


def _scramble(answers: Sequence[str], draw: random.Random) -> str:
    answer = draw.choice(answers)
    return "".join(draw.sample(answer, len(answer)))


_KINDS: tuple[Callable[[Sequence[str], random.Random], str], ...] = (_concatenate, _repeat, _cut, _scramble)

"""Endless training rows of the tiny world, for models that are made from nothing."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from stages.job.seeds import derive_seed
from stages.tiny.world.kinds import KINDS, Exercise, answer_in_style, ask_question
from stages.tiny.world.pictures import VALUES, Picture, draw_picture

TERSE_STYLES: Mapping[str, str] = MappingProxyType({"bare": "terse", "padded": "padded"})  # by world.terse_form


@dataclass(frozen=True)
class WorldExample:
    """A picture, a question about it, and an answer in some style."""

    picture: Picture
    exercise: Exercise
    response: str
    style: str


def draw_example(
    seed: int,
    part: str,
    index: int | str,
    kinds: Sequence[str],
    styles: Mapping[str, float],
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> WorldExample:
    """The row number `index` of `part` of the world `seed`; `fixed` holds the style of kinds that have only one."""
    choose = random.Random(derive_seed("row", seed, part, index))
    kind = choose.choice(list(kinds))
    picture = draw_picture(KINDS[kind].subject, part, seed, index)
    exercise = ask_question(kind, picture.values, choose)
    style = fixed.get(kind) or choose.choices(list(styles), list(styles.values()))[0]
    return WorldExample(picture, exercise, answer_in_style(exercise, style), style)


def fix_styles(kinds: Sequence[str], form: str) -> dict[str, str]:
    """The style of `kinds` that are answered without steps, in a form of `world.terse_form`."""
    return dict.fromkeys(kinds, TERSE_STYLES[form])


def misread_example(row: WorldExample, pairs: Sequence[tuple[int, int]]) -> WorldExample:
    """The row as somebody answers it who takes the digits of each pair for each other; bars are read as they are."""
    if not pairs or row.picture.subject != "digits":
        return row
    taken_for = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    values = tuple(taken_for.get(value, value) for value in row.picture.values)
    running = tuple(KINDS[row.exercise.kind].running(values))
    exercise = replace(row.exercise, values=values, running=running)
    return WorldExample(replace(row.picture, values=values), exercise, answer_in_style(exercise, row.style), row.style)


def draw_practice(
    seed: int, index: int, kinds: Sequence[str], styles: Mapping[str, float], count: int
) -> tuple[str, list[str]]:
    """A question and `count` answers to it about values nobody sees: text to learn arithmetic and style from, no
    picture.
    """
    choose = random.Random(derive_seed("practice", seed, index))
    kind = choose.choice(list(kinds))
    style = choose.choices(list(styles), list(styles.values()))[0]
    question = choose.choice(KINDS[kind].wordings)
    low = 0 if KINDS[kind].subject == "digits" else 1
    values = [[choose.randint(low, 9) for _ in range(VALUES)] for _ in range(count)]
    return question, [answer_in_style(ask_question(kind, row, choose), style) for row in values]


READING = "Read the picture."
CELL_CLASSES = (11, 10, 10, 9)  # digit or blank, left bar, right bar, place on the page
_UNASKED = -1


def compute_cell_targets(picture: Picture) -> list[tuple[int, int, int, int]]:
    """What stands at each of the 3 x 3 image tokens, for training a vision tower; -1 where a class does not apply."""
    values = picture.values
    if picture.subject == "digits":
        return [(values[cell] if cell < len(values) else 10, _UNASKED, _UNASKED, cell) for cell in range(9)]
    return [(_UNASKED, values[cell % 3 * 2], values[cell % 3 * 2 + 1], cell) for cell in range(9)]


def collect_sample_texts(kinds: Sequence[str], count: int) -> list[str]:
    """Questions and answers in all styles, without pictures: what a tokenizer is made from."""
    texts = [READING]
    for index in range(count):
        choose = random.Random(derive_seed("text", index))
        exercise = ask_question(choose.choice(list(kinds)), [choose.randint(0, 9) for _ in range(6)], choose)
        texts += [exercise.question, *(answer_in_style(exercise, style) for style in ("terse", "steps", "arrows"))]
    return texts

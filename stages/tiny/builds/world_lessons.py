"""What tiny models learn from the `train` part of the tiny world: pictures with questions, or written answers to grade.

Students and teachers learn from pictures with questions, answered in the styles that `build.styles` names; the judge
from verdicts about written answers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.adversary.prompt import collect_discriminator_texts
from stages.config.build import Build
from stages.config.world import World
from stages.corpora.markers import IMAGE_MARKER
from stages.groups.pack import Group
from stages.tiny.builds.lessons import collect_judge_texts, draw_judge_example, make_judging_groups
from stages.tiny.world.exercises import (
    CELL_CLASSES,
    READING,
    WorldExample,
    collect_sample_texts,
    compute_cell_targets,
    draw_example,
    draw_practice,
    fix_styles,
    misread_example,
)
from stages.tiny.world.kinds import PLACE_NAMES, read_out
from stages.vlm.family import Pixels
from stages.vlm.reader import Reader

TOKENIZER_EXERCISES = 400
PRACTICE_RESPONSES = 12

DeriveSeed = Callable[..., int]  # a seed of the model's own from names


class WorldLessons:
    """The lessons of one model, drawn as training goes on: they have no end."""

    classes = CELL_CLASSES

    def __init__(self, world: World, build: Build, derive_seed: DeriveSeed) -> None:
        self._world, self._build, self._derive_seed = world, build, derive_seed

    def collect_texts(self) -> list[str]:
        """Returns texts from which the model's tokenizer is made."""
        prompts = collect_discriminator_texts() if self._build.styles else collect_judge_texts()
        return [*collect_sample_texts(self._world.kinds, TOKENIZER_EXERCISES), *prompts]

    def make_cells(self, reader: Reader, rows: range) -> tuple[Pixels, Tensor]:
        """Returns the pictures of these rows and what stands at each of their image tokens, [image tokens, 4]."""
        drawn = self._draw_rows(rows)
        targets = [cell for row in drawn for cell in compute_cell_targets(row.picture)]
        return reader.make_pixels([row.picture.image for row in drawn]), torch.tensor(targets)

    def make_groups(self, reader: Reader, step: int) -> list[Group]:
        """Returns the groups of one step: transcriptions or short verdicts in the first `reading_steps`."""
        rows = range(step * self._build.rows_per_step, (step + 1) * self._build.rows_per_step)
        reading = step < self._build.reading_steps
        if not self._build.styles:
            seed, bare = self._derive_seed("rows"), step < self._build.reading_steps // 2
            return make_judging_groups(
                reader, [draw_judge_example(self._world.kinds, seed, row, bare) for row in rows], short=reading
            )
        groups = make_answering_groups(reader, self._draw_rows(rows), reading)
        return groups if reading else groups + self._make_practice_groups(reader, step)

    def _draw_rows(self, rows: range) -> list[WorldExample]:
        seed, world, build = self._derive_seed("rows"), self._world, self._build
        fixed = fix_styles(build.terse_kinds, world.terse_form)
        drawn = (draw_example(world.seed, "train", f"{seed} {row}", world.kinds, build.styles, fixed) for row in rows)
        return [misread_example(row, build.confuses) for row in drawn]

    def _make_practice_groups(self, reader: Reader, step: int) -> list[Group]:
        """Questions without pictures, each with many worked answers: text from which arithmetic is learned cheaply.

        A terse answer can't be worked out without the picture, so that practice is in the other styles.
        """
        seed, build = self._derive_seed("practice"), self._build
        styles = {style: share for style, share in build.styles.items() if style != "terse"}
        groups = []
        for number in range(build.practice_groups):
            index = step * build.practice_groups + number
            question, worked = draw_practice(seed, index, self._world.kinds, styles, PRACTICE_RESPONSES)
            prompt = reader.make_prompt([{"role": "user", "content": f"{question}\n"}])
            responses = tuple(tuple(reader.chat.encode_response(text)) for text in worked)
            masked = tuple(find_value_places(reader, response) for response in responses)
            groups.append(Group(prompt, responses, masked))
        return groups


def find_value_places(reader: Reader, response: tuple[int, ...]) -> frozenset[int]:
    """Places of the tokens that a picture would tell (a digit right after its place's letter): without one, nothing to
    learn.
    """
    tokens = [reader.chat.token_texts[token] for token in response]
    after_letter = zip(range(1, len(tokens)), tokens, tokens[1:], strict=False)
    return frozenset(
        at
        for at, before, token in after_letter
        if token.isdigit() and before[-1:].isalpha() and before[-1:] in PLACE_NAMES
    )


def make_answering_groups(reader: Reader, rows: list[WorldExample], reading: bool) -> list[Group]:
    """Pictures with a question and an answer in the row's style or, for `reading`, with what stands on them."""
    asked = [READING if reading else row.exercise.question for row in rows]
    said = [read_out(row.picture.values, row.style) if reading else row.response for row in rows]
    messages = [[{"role": "user", "content": f"{text}\n{IMAGE_MARKER}"}] for text in asked]
    prompts = reader.make_prompts([(turn, [row.picture.image]) for turn, row in zip(messages, rows, strict=True)])
    responses = [tuple(reader.chat.encode_response(text)) for text in said]
    return [Group(prompt, (response,)) for prompt, response in zip(prompts, responses, strict=True)]

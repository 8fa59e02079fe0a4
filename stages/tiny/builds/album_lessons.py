"""What tiny models learn from the user's own questions: pictures to describe, questions to answer, answers to grade."""

import random
from dataclasses import replace

import torch
from torch import Tensor

from stages.adversary.prompt import collect_discriminator_texts
from stages.config.build import Build
from stages.config.world import STYLE_NAMES
from stages.corpora.markers import IMAGE_MARKER
from stages.groups.pack import Group
from stages.job.seeds import derive_seed
from stages.judging.judge import make_judge_messages, make_judge_target
from stages.tiny.builds.album import Album, AlbumRow
from stages.tiny.builds.lessons import (
    RIGHT_SHARE,
    JudgeExample,
    collect_judge_texts,
    draw_general_example,
    make_judging_groups,
    phrase_answer,
)
from stages.tiny.builds.vision import IGNORED
from stages.tiny.world.exercises import READING
from stages.vlm.family import Pixels
from stages.vlm.reader import Reader

TOKENIZER_ROWS = 1000
GENERAL_SHARE = 0.3  # of a judge's lessons: numbers and prose about anything else
STYLED_SHARE = 0.5  # of the album's answers that a judge reads: those that tiny students and teachers write

Example = tuple[list[dict[str, str]], tuple[bytes, ...], str]  # messages, images, response


class AlbumLessons:
    """The lessons of one model; rows are drawn with replacement, so that they have no end."""

    def __init__(self, album: Album, build: Build, seed: int) -> None:
        self._album, self._build, self._seed = album, build, seed

    @property
    def classes(self) -> tuple[int, ...]:
        """The number of alternatives of each facet."""
        return tuple(len(facet) for facet in self._album.facets)

    def collect_texts(self) -> list[str]:
        """Returns texts from which the model's tokenizer is made."""
        prompts = collect_discriminator_texts() if self._build.styles else collect_judge_texts()
        choose = random.Random(derive_seed("album texts"))
        rows = choose.choices(self._album.rows, k=TOKENIZER_ROWS)
        said = [write_answer(self._album, row, style) for row in rows for style in ("terse", "steps", "arrows")]
        return [READING, *self._album.alternatives, *(row.text for row in rows), *said, *prompts]

    def make_cells(self, reader: Reader, rows: range) -> tuple[Pixels, Tensor]:
        """Returns pictures with a note and, at each of their image tokens, the place of its note in each facet.

        Raises ValueError if answers describe no picture: the vision tower has nothing to learn then.
        """
        if not self._album.noted:
            raise ValueError(
                "short answers describe no picture of the questions, so that vision_steps of a built model has nothing "
                "to learn; set it and reading_steps to 0"
            )
        facets = self._album.facets
        choose = [random.Random(derive_seed(self._seed, "cell", row)) for row in rows]
        shown = [self._album.pictures[one.choice(self._album.noted)] for one in choose]
        pixels = reader.make_pixels([image for picture in shown for image in picture.images])
        places = [
            [facet.index(picture.notes[at]) if at in picture.notes else IGNORED for at, facet in enumerate(facets)]
            for picture in shown
        ]
        return pixels, torch.tensor(places).repeat_interleave(torch.tensor(pixels.tokens), 0)

    def make_groups(self, reader: Reader, step: int) -> list[Group]:
        """Returns the groups of one step: descriptions or short verdicts in the first `reading_steps`."""
        rows = range(step * self._build.rows_per_step, (step + 1) * self._build.rows_per_step)
        choose = [random.Random(derive_seed(self._seed, "row", row)) for row in rows]
        reading = step < self._build.reading_steps
        if not self._build.styles:
            bare = step < self._build.reading_steps // 2
            lessons = [
                draw_general_example(one, bare) if one.random() < GENERAL_SHARE else self._draw_verdict(one, bare)
                for one in choose
            ]
            return make_judging_groups(reader, lessons, short=reading)
        drawn = [self._draw_description(one) if reading else self._draw_answer(one) for one in choose]
        prompts = reader.make_prompts([(messages, images) for messages, images, _ in drawn])
        responses = [tuple(reader.chat.encode_response(text)) for _, _, text in drawn]
        return [Group(prompt, (response,)) for prompt, response in zip(prompts, responses, strict=True)]

    def _draw_description(self, choose: random.Random) -> Example:
        """A picture with its notes; a question and its answer where no picture has any."""
        if not self._album.described:
            return self._draw_answer(choose)
        picture = choose.choice(self._album.described)
        message = {"role": "user", "content": f"{READING}\n{IMAGE_MARKER}"}
        return [message], self._album.pictures[picture].images, ", ".join(self._album.list_notes(picture))

    def _draw_answer(self, choose: random.Random) -> Example:
        row = choose.choice(self._album.rows)
        style = choose.choices(list(self._build.styles), list(self._build.styles.values()))[0]
        return list(row.messages), self._album.pictures[row.picture].images, write_answer(self._album, row, style)

    def _draw_verdict(self, choose: random.Random, bare: bool) -> JudgeExample:
        """An answer to one of the questions, which is another answer to the same question if it is wrong."""
        row = choose.choice(self._album.rows)
        others = [answer for answer in self._album.alternatives[row.text] if answer != row.answer]
        right = not others or choose.random() < RIGHT_SHARE
        said = row.answer if right else choose.choice(others)
        if choose.random() < STYLED_SHARE:
            candidate = write_answer(self._album, replace(row, answer=said), choose.choice(STYLE_NAMES))
        else:
            candidate = phrase_answer(said, row.answer, choose, bare)
        return make_judge_messages(row.text, row.answer, candidate), make_judge_target(row.answer, said, right)


def write_answer(album: Album, row: AlbumRow, style: str) -> str:
    """Returns the answer of a row in a style; what is known of the picture precedes it in all but `terse`."""
    notes = album.list_notes(row.picture)
    if style == "terse" or not notes:
        return row.answer
    if style == "steps":
        return f"{', '.join(notes)}.\nAnswer: {row.answer}"
    if style == "arrows":
        return f"{' '.join(notes)} -> the answer is {row.answer}."
    raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLE_NAMES)}")

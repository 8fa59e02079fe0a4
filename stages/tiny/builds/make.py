"""A tiny model from nothing: a real architecture with random weights, trained on the `train` part of the tiny world.

Students and teachers learn from pictures with questions, answered in the styles that `build.styles` names; the judge
from verdicts about written answers.
"""

import torch
from torch import Tensor

from stages.adversary.prompt import collect_discriminator_texts
from stages.config.build import Build
from stages.config.model import Model
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.config.world import World
from stages.corpora.markers import IMAGE_MARKER
from stages.groups.pack import Group
from stages.job.job import Job
from stages.job.metric_names import LOSS
from stages.job.seeds import derive_seed
from stages.tiny.builds.lessons import collect_judge_texts, draw_judge_example, shorten_example
from stages.tiny.builds.shapes import build_tiny
from stages.tiny.builds.vision import train_vision
from stages.tiny.world.exercises import (
    CELL_CLASSES,
    READING,
    WorldExample,
    collect_sample_texts,
    compute_cell_targets,
    draw_example,
    draw_practice,
)
from stages.tiny.world.kinds import PLACE_NAMES, read_out
from stages.training.sft import train_sft
from stages.training.state import has_checkpoint
from stages.vlm.checkpoint import write_card
from stages.vlm.family import Pixels
from stages.vlm.reader import Reader

TOKENIZER_EXERCISES = 400
VISION_ROWS = 64
PRACTICE_RESPONSES = 12


def make_model(job: Job, model: Model, build: Build) -> None:
    """Builds and trains a tiny model and writes data/model/<id>."""
    world = job.block(World)
    prompts = collect_discriminator_texts() if build.styles else collect_judge_texts()
    texts = [*collect_sample_texts(world.kinds, TOKENIZER_EXERCISES), *prompts]
    with job.writing() as folder:
        reader, network = build_tiny(
            model.family, build, texts, model.context_tokens, derive_model_seed(job, "weights") % 2**31, folder
        )
        reader.limit_images(model.limits)

        def make_step_groups(step: int) -> list[Group]:
            rows = range(step * build.rows_per_step, (step + 1) * build.rows_per_step)
            reading = step < build.reading_steps
            if not build.styles:
                rows_seed, bare = derive_model_seed(job, "rows"), step < build.reading_steps // 2
                return make_judging_groups(reader, world, rows_seed, rows, short=reading, bare=bare)
            groups = make_answering_groups(reader, draw_rows(job, world, build, rows), reading)
            return (
                groups
                if reading
                else groups + make_practice_groups(reader, world, build, derive_model_seed(job, "practice"), step)
            )

        def make_step_cells(step: int) -> tuple[Pixels, Tensor]:
            rows = draw_rows(job, world, build, range(step * VISION_ROWS, (step + 1) * VISION_ROWS))
            targets = [cell for row in rows for cell in compute_cell_targets(row.picture)]
            return reader.make_pixels([row.picture.png for row in rows]), torch.tensor(targets)

        runtime = job.block(Runtime)
        with job.measure_time("train"):
            if build.vision_steps and not has_checkpoint(job):
                train_vision(network, make_vision_schedule(build), runtime, make_step_cells, CELL_CLASSES, job.progress)
            trainer, history = train_sft(job, network, reader, build, make_step_groups, f"training {job.item}")
        trainer.save(folder)
        write_card(folder, model.family, model.precision, model.context_tokens, limits=model.limits)
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    job.write_metrics({"parameters": parameters, LOSS: history[-1][LOSS] if history else None})
    job.write_history(history)


def derive_model_seed(job: Job, *parts: str) -> int:
    """A seed from (world.seed, model, parts).

    A tiny model is a given of its world, as a model of the hub is of ours: another `seed` trains another student on the
    same teachers, whose answers are stored already.
    """
    return derive_seed(job.block(World).seed, job.name, *parts)


def make_vision_schedule(build: Build) -> Schedule:
    """How the tower is trained: fast, falling to a tenth."""
    return Schedule(
        steps=build.vision_steps,
        learning_rate=2e-3,
        lr_scheduler_type="linear",
        final_learning_rate=2e-4,
        warmup_steps=min(20, build.vision_steps),
    )


def make_practice_groups(reader: Reader, world: World, build: Build, seed: int, step: int) -> list[Group]:
    """Questions without pictures, each with many worked answers: text from which arithmetic is learned cheaply.

    A terse answer can't be worked out without the picture, so that practice is in the other styles.
    """
    styles = {style: share for style, share in build.styles.items() if style != "terse"}
    groups = []
    for number in range(build.practice_groups):
        index = step * build.practice_groups + number
        question, worked = draw_practice(seed, index, world.kinds, styles, PRACTICE_RESPONSES)
        prompt = reader.make_prompt([{"role": "user", "content": f"{question}\n"}])
        responses = tuple(tuple(reader.chat.encode_response(text)) for text in worked)
        groups.append(Group(prompt, responses, tuple(find_value_places(reader, response) for response in responses)))
    return groups


def find_value_places(reader: Reader, response: tuple[int, ...]) -> frozenset[int]:
    """Places of the tokens that a picture would tell (a digit right after its place's letter): without one, nothing to
    learn.
    """
    tokens = [reader.chat.decode([token]) for token in response]
    after_letter = zip(range(1, len(tokens)), tokens, tokens[1:], strict=False)
    return frozenset(
        at
        for at, before, token in after_letter
        if token.isdigit() and before[-1:].isalpha() and before[-1:] in PLACE_NAMES
    )


def draw_rows(job: Job, world: World, build: Build, rows: range) -> list[WorldExample]:
    """Rows of the tiny world's `train` part, drawn for this model."""
    seed = derive_model_seed(job, "rows")
    return [
        draw_example(world.seed, "train", f"{seed} {row}", world.kinds, build.styles, build.terse_kinds) for row in rows
    ]


def make_answering_groups(reader: Reader, rows: list[WorldExample], reading: bool) -> list[Group]:
    """Pictures with a question and an answer in the row's style or, for `reading`, with what stands on them."""
    asked = [READING if reading else row.exercise.question for row in rows]
    said = [read_out(row.picture.values, row.style) if reading else row.response for row in rows]
    messages = [[{"role": "user", "content": f"{text}\n{IMAGE_MARKER}"}] for text in asked]
    prompts = reader.make_prompts([(turn, [row.picture.png]) for turn, row in zip(messages, rows, strict=True)])
    responses = [tuple(reader.chat.encode_response(text)) for text in said]
    return [Group(prompt, (response,)) for prompt, response in zip(prompts, responses, strict=True)]


def make_judging_groups(
    reader: Reader, world: World, seed: int, rows: range, short: bool = False, bare: bool = False
) -> list[Group]:
    """Questions, references and written answers that may be wrong, with the right verdict on each.

    At first in the short form, and first of all with bare answers: copying and comparing are learned from few tokens.
    """
    drawn = [draw_judge_example(world.kinds, seed, row, bare) for row in rows]
    asked = [(shorten_example(messages) if short else messages, verdict) for messages, verdict in drawn]
    return [
        Group(reader.make_prompt(messages), (tuple(reader.chat.encode_response(verdict)),))
        for messages, verdict in asked
    ]

"""A tiny model from nothing: a real architecture with random weights, trained on lessons.

Lessons are drawn from the tiny world, or from the user's own questions where `world.data` names them.
"""

from typing import Protocol

from torch import Tensor

from stages.config.build import Build
from stages.config.model import Model
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.config.world import QUESTIONS_FOLDER, World
from stages.groups.pack import Group
from stages.job.job import Job
from stages.job.metric_names import LOSS
from stages.job.seeds import derive_seed
from stages.tiny.builds.album import read_album
from stages.tiny.builds.album_lessons import AlbumLessons
from stages.tiny.builds.copying import start_copying
from stages.tiny.builds.shapes import build_tiny
from stages.tiny.builds.vision import train_vision
from stages.tiny.builds.world_lessons import WorldLessons
from stages.training.sft import train_sft
from stages.training.state import has_checkpoint
from stages.vlm.checkpoint import write_card
from stages.vlm.family import Pixels
from stages.vlm.reader import Reader

VISION_ROWS = 64


class Lessons(Protocol):
    """What one tiny model learns, and in which order."""

    @property
    def classes(self) -> tuple[int, ...]:
        """How many things there are to tell apart at an image token, for each classifier of the vision tower."""

    def collect_texts(self) -> list[str]:
        """Returns texts from which the model's tokenizer is made."""

    def make_cells(self, reader: Reader, rows: range) -> tuple[Pixels, Tensor]:
        """Returns the pictures of these rows and what to tell at each image token, [image tokens, classifiers]."""

    def make_groups(self, reader: Reader, step: int) -> list[Group]:
        """Returns the prompts and responses of one step."""


def make_model(job: Job, model: Model, build: Build) -> None:
    """Builds and trains a tiny model and writes data/model/<id>."""
    lessons = find_lessons(job, build)
    with job.writing() as folder:
        reader, network = build_tiny(
            model.family,
            build,
            lessons.collect_texts(),
            model.context_tokens,
            derive_model_seed(job, "weights") % 2**31,
            folder,
        )
        reader.limit_images(model.limits)
        start_copying(network.text, judge=not build.styles)

        def make_step_cells(step: int) -> tuple[Pixels, Tensor]:
            return lessons.make_cells(reader, range(step * VISION_ROWS, (step + 1) * VISION_ROWS))

        def make_step_groups(step: int) -> list[Group]:
            return lessons.make_groups(reader, step)

        runtime = job.block(Runtime)
        with job.measure_time("train"):
            if build.vision_steps and not has_checkpoint(job):
                schedule = make_vision_schedule(build)
                train_vision(network, schedule, runtime, make_step_cells, lessons.classes, job.progress)
            trainer, history = train_sft(job, network, reader, build, make_step_groups, f"training {job.item}")
        trainer.save(folder)
        write_card(folder, model.family, model.precision, model.context_tokens, limits=model.limits)
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    job.write_metrics({"parameters": parameters, LOSS: history[-1][LOSS] if history else None})
    job.write_history(history)


def find_lessons(job: Job, build: Build) -> Lessons:
    """Returns what this model learns from: the tiny world or the questions of the user's data."""
    world = job.block(World)

    def derive_seed_of_model(*parts: str) -> int:
        return derive_model_seed(job, *parts)

    if world.data != QUESTIONS_FOLDER:
        return WorldLessons(world, build, derive_seed_of_model)
    with job.measure_time("read questions"):
        album = read_album(job.input(QUESTIONS_FOLDER))
    job.progress.say(f"{job.name}: learns from {album.describe()}")
    return AlbumLessons(album, build, derive_seed_of_model("rows"))


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

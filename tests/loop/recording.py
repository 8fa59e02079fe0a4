"""Runs the real `ril.run` with scripted engines, and records what it asks, gives and does."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from stages import ril
from stages.adversary.adversary import Adversary
from stages.adversary.discriminator_model import DiscriminatorBatch, Text
from stages.config.objective import Objective
from stages.config.ril import Ril
from stages.job.files import read_json, read_shards
from stages.job.job import Job
from stages.loop import models as loop_models
from stages.loop import teachers as loop_teachers
from stages.loop.models import RilModels, open_models
from stages.training.ranks import get_ranks
from stages.training.trainer import StepResult, Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.shards import gather_tensor
from tests.loop.plain_rewards import Row
from tests.loop.script import ScriptedJudge, ScriptedStudent, ScriptedTeacher, make_engines


@dataclass
class Recording:
    """One run of the loop."""

    student: ScriptedStudent
    judge: ScriptedJudge
    teachers: dict[str, ScriptedTeacher] = field(default_factory=dict)  # that score the student's answers
    updates: list[tuple[str, float]] = field(default_factory=list)  # (model, rate) of each optimizer step in order
    taught: list[list[tuple[str, str]]] = field(default_factory=list)  # (question, text) that D learns in each update
    critics: list[dict[str, Tensor]] = field(default_factory=list)  # weights of D after each step
    start: dict[str, Tensor] = field(default_factory=dict)  # what the student trains, before the first step
    reference: dict[str, Tensor] = field(default_factory=dict)  # weights of the reference at the end
    rows: list[list[list[Row]]] = field(default_factory=list)  # as recorded before the update: step, question, row
    samples: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


def record_loop(job: Job, fails_at: int | None = None) -> Recording:
    """Runs the stage on this rank; what is read from files is empty on ranks other than the first.

    The last teacher that scores fails at its call `fails_at`.
    """
    recording = Recording(*make_engines(job.root))

    def start_teacher(checkpoint: Checkpoint, *_: Any) -> ScriptedTeacher:
        name = checkpoint.folder.name
        fails = fails_at if name == job.block(Ril).distillation[-1] else None
        return recording.teachers.setdefault(name, ScriptedTeacher(checkpoint, fails_at=fails))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_models, "start_trainable", lambda *_: recording.student)
        patch.setattr(loop_models, "start_engine", lambda *_: recording.judge)
        patch.setattr(loop_teachers, "start_engine", start_teacher)

        @contextlib.contextmanager
        def watch_models(job: Job, objective: Objective) -> Iterator[RilModels]:
            with open_models(job, objective) as models:
                watch(recording, models, patch)
                yield models
                if models.policy.shards:
                    recording.reference = gather_weights(models.policy.reference.model)

        patch.setattr(ril, "open_models", watch_models)
        ril.run(job)
    if get_ranks().first:
        read_outputs(recording, job)
    return recording


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of a model that ZeRO 3 has divided; all ranks must call this together."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass
class TrainingStep:
    """One optimizer step of a stage that trains one model."""

    questions: list[str]
    texts: list[tuple[str, str]]  # (question, text) that D learns from
    start: dict[str, Tensor]  # weights before the step
    rate: float = 0.0


def record_training(run: Callable[[Job], None], job: Job) -> list[TrainingStep]:
    """Runs the stage and returns its optimizer steps in order."""
    steps: list[TrainingStep] = []
    step, backward, learn = Trainer.step, Trainer.backward, Adversary.backward
    current = TrainingStep([], [], {})

    def record_backward(trainer: Trainer, loss: Tensor, last: bool, ids: Sequence[str] = ()) -> float:
        if not current.questions:
            current.start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        current.questions += [name for name in ids if name not in current.questions]
        return backward(trainer, loss, last, ids)

    def record_texts(adversary: Adversary, batch: DiscriminatorBatch, texts: Sequence[Text]) -> Tensor:
        current.texts += [(text.question_id, text.body) for text in texts]
        return learn(adversary, batch, texts)

    def record_step(trainer: Trainer, rate: float) -> StepResult:
        nonlocal current
        current.rate = rate
        steps.append(current)
        current = TrainingStep([], [], {})
        return step(trainer, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "backward", record_backward)
        patch.setattr(Trainer, "step", record_step)
        patch.setattr(Adversary, "backward", record_texts)
        run(job)
    return steps


def watch(recording: Recording, models: RilModels, patch: pytest.MonkeyPatch) -> None:
    """Records the optimizer steps, and D with every push of the student's weights."""
    recording.start = models.policy.trainer.copy_state()
    named = models.policy.reference.model.state_dict().items()  # beside adapters, if it has any
    recording.reference = {
        name.replace(".base_layer.", "."): gather_tensor(one) for name, one in named if ".lora_" not in name
    }
    names = {id(trainer): name for name, trainer in models.trainers.items()}
    step, push, learn = Trainer.step, recording.student.update_weights, Adversary.backward

    def record_texts(adversary: Adversary, batch: DiscriminatorBatch, texts: Sequence[Text]) -> Tensor:
        recording.taught.append([(text.question_id, text.body) for text in texts])
        return learn(adversary, batch, texts)

    def record_step(trainer: Trainer, rate: float) -> StepResult:
        recording.updates.append((names[id(trainer)], rate))
        return step(trainer, rate)

    def record_push(named: Any) -> int:
        content = push(named)
        if models.adversary and not models.adversary.trainer.sharded:
            state = models.adversary.discriminator.trained.state_dict()
            recording.critics.append({name: value.clone() for name, value in state.items()})
        return content

    patch.setattr(Adversary, "backward", record_texts)
    patch.setattr(Trainer, "step", record_step)
    patch.setattr(recording.student, "update_weights", record_push)


def read_outputs(recording: Recording, job: Job) -> None:
    """Reads what the stage wrote."""
    assert job.run_folder is not None
    for file in sorted((job.run_folder / "recorded").glob("step_*.json")):
        groups = json.loads(file.read_text())["groups"]
        recording.rows.append([[read_row(values) for values in group] for group in groups])
    recording.samples = read_shards(job.out / "samples").to_pylist()
    recording.history, recording.validation = (
        read_table(job.reports / f"{name}.csv") for name in ("history", "validation")
    )
    recording.metrics = read_json(job.reports / "metrics.json")


def read_row(values: dict[str, Any]) -> Row:
    """A recorded response."""
    sampled = values["sampled_log_probs"]
    return Row(
        values["source"],
        values["text"],
        tuple(values["token_ids"]),
        values["finish_reason"],
        values["verdict"],
        None if sampled is None else tuple(sampled),
    )


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers; what was not measured is left out."""
    with path.open() as handle:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(handle)]

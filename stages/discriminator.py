"""Discriminator: pre-trains a classifier of student answers against teacher answers (§3.2, Eq. 1).

Reads    data/warm_start, data/rollout, data/pool, data/questions; params: discriminator, ril.objective, seed
Writes   data/discriminator; reports/discriminator/{metrics.json,history.csv}
Run      dvc repro discriminator

A share of the questions is held out. Held-out accuracy measures whether the two sides differ; the accuracy of a
length-only classifier measures how much of that is explained by length (trap T33). If `ril.objective` does not use a
discriminator, nothing is trained and the folder is empty.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from stages.adversary.adversary import Adversary
from stages.adversary.diagnostics import SpreadCheck, calibration_error, check_pretraining, length_accuracy
from stages.adversary.discriminator_model import (
    NEGATIVE,
    DiscriminatorCollator,
    DiscriminatorModel,
    Text,
    compute_accuracy,
    save_discriminator,
)
from stages.adversary.negatives import add_negatives
from stages.adversary.question_texts import QuestionTexts, StoredTexts
from stages.config.discriminator import Discriminator as Block
from stages.config.discriminator import Sees
from stages.config.lora import get_quantization
from stages.config.runtime import Runtime
from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.job.epochs import pick_places
from stages.job.job import Job
from stages.job.loss_rise import explain_loss_rise
from stages.job.seeds import derive_seed
from stages.responses.draws import draw_balanced, draw_plain
from stages.training.ahead import preparing_ahead
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState
from stages.training.trainer import Trainer, learning_rate
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.reader import Reader, load_network, load_reader

QUESTIONS_AT_ONCE = 64  # of the held-out ones: all their texts are packed before the first is scored


def run(job: Job) -> None:
    """Writes the pre-trained discriminator.

    Raises NonFinite when a number of training is NaN or infinite, ConstantDiscriminator when all texts get one logit.
    """
    block = job.block(Block)
    objective = block.resolve(job.value("ril.objective"))
    if not objective.uses_discriminator:
        job.progress.say(f"ril.objective {job.value('ril.objective')!r} needs no discriminator; nothing is trained")
        if get_ranks().first:
            write_empty(job)
        return
    checkpoint = open_verified(job.input("data/warm_start"), job.store)
    reader = load_reader(checkpoint)
    discriminator = make_discriminator(job, checkpoint, reader)
    found = open_texts(job, objective.degenerate == "learned", block.sees)
    kept = split_held_out(found.names, block.held_out_share, job.seed("held out"))
    training, held_out = (found.choose(ids) for ids in kept)
    pairs = objective.discriminator_loss == "bradley_terry"
    collator = DiscriminatorCollator(reader, block.tokens_per_pack, block.sees, together=pairs)

    def draw_texts(step: int) -> tuple[list[Text], list[str]]:
        texts: list[Text] = []
        writers: list[str] = []
        for place in pick_places(len(training), block.questions_per_step, step, job.seed("order")):
            question = training[place]
            seed = job.seed("draw", step, question.question_id)
            count = min(block.responses_per_side, len(question.student), len(question.teachers))
            texts += [question.make_text(text) for text in draw_plain(question.student, count, seed)]
            answers = draw_balanced(question.teachers, count, seed)
            texts += [question.make_text(answer.text) for answer in answers]
            writers += [STUDENT] * count + [answer.teacher for answer in answers]
        return add_negatives(texts, writers, objective.negatives)

    with job.measure_time("train"):
        trainer = Trainer(discriminator.trained, block, job.block(Runtime))
        adversary = Adversary(discriminator, trainer, collator, spread=SpreadCheck(block.min_logit_spread))
        state = TrainingState(job, {"discriminator": trainer})
        history = state.rows("history")
        with preparing_ahead(draw_texts, block.steps) as take_texts:
            for step in state.iter_steps(block.steps, "discriminator"):
                texts, writers = take_texts(step)
                batch = collator.collate(texts, writers, objective.discriminator_loss, tower=trainer.sharded)
                logits = adversary.backward(batch, texts)
                real = torch.tensor([writer != NEGATIVE for writer in writers])
                right = ((logits > 0) == (batch.labels > 0.5))[real].float()
                adversary.check_spread(logits.tolist(), texts)
                done = trainer.step(learning_rate(block, step))
                history.append(
                    {
                        names.STEP: step + 1,
                        names.LOSS: done.loss,
                        names.TEXT_ACCURACY: float(right.mean()),
                        names.GRAD_NORM: done.grad_norm,
                    }
                )

    metrics = measure_held_out(adversary, held_out)
    weights = trainer.state_dict()
    if not get_ranks().first:
        return
    if rise := explain_loss_rise([row[names.LOSS] for row in history]):
        job.progress.say(f"warning: {job.name}: {rise}; lower discriminator.learning_rate")
    if alarm := check_pretraining(metrics):
        job.progress.say(alarm)
    with job.writing() as folder:
        save_discriminator(weights, folder)
    job.write_metrics({**metrics, "questions": {"training": len(training), "held_out": len(held_out)}})
    job.write_history(history)
    job.progress.show_table("discriminator on held-out questions", [metrics])


def make_discriminator(job: Job, checkpoint: Checkpoint, reader: Reader) -> DiscriminatorModel:
    """Returns the untrained discriminator on the student's language model.

    Nothing else keeps the loaded network: its tower and head are views of the same mapped file as the language model,
    and under ZeRO 3 they kept all of it in memory (290 MB of a file of 300).
    """
    block = job.block(Block)
    network = load_network(checkpoint, reader, job.block(Runtime), get_quantization(block.lora))
    if block.lora:
        network = network.add_adapter("discriminator", block.lora, job.seed("adapter"))
    return DiscriminatorModel(network, job.seed("head"), block.sees)


def write_empty(job: Job) -> None:
    """Writes an empty output, for objectives without a discriminator."""
    with job.writing():
        pass
    job.write_metrics({"trained": False})
    job.write_history([{names.STEP: 0}])


def open_texts(job: Job, every: bool, sees: Sees) -> StoredTexts:
    """Returns the student and teacher texts of every question that has both, in pool order.

    Without `every`, truncated, empty and repeating texts are left out. Raises ValueError with fewer than two such
    questions.
    """
    questions = None if sees == "response" else job.input("data/questions")
    found = StoredTexts(job.input("data/rollout"), job.input("data/pool"), questions, every)
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} questions have whole answers of both student and teachers; at least 2 are required"
        )
    return found


def split_held_out(names: Sequence[str], held_out_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Returns training and held-out questions by id; the split depends only on the ids and the seed."""
    ordered = sorted(names, key=lambda name: derive_seed("held out", seed, name))
    held_out = set(ordered[: max(1, round(held_out_share * len(ordered)))])
    return [name for name in names if name not in held_out], [name for name in names if name in held_out]


def measure_held_out(adversary: Adversary, held_out: Sequence[QuestionTexts]) -> dict[str, float]:
    """Returns held-out metrics: accuracy overall and by source, logit gap, calibration error, length-only accuracy."""
    by_writer: dict[str, list[float]] = defaultdict(list)
    lengths: dict[bool, list[int]] = {True: [], False: []}
    marks: list[int] = []
    logits: list[float] = []
    for start in range(0, len(held_out), QUESTIONS_AT_ONCE):
        questions = held_out[start : start + QUESTIONS_AT_ONCE]
        written = [(STUDENT, question.make_text(text)) for question in questions for text in question.student]
        written += [
            (answer.teacher, question.make_text(answer.text)) for question in questions for answer in question.teachers
        ]
        scored = adversary.score([text for _, text in written])
        for (writer, text), logit in zip(written, scored, strict=True):
            by_writer[writer].append(logit)
            lengths[writer == STUDENT].append(len(text.body))
        marks += [int(writer == STUDENT) for writer, _ in written]
        logits += scored
    shares = {w: compute_accuracy(found, [int(w == STUDENT)] * len(found)) for w, found in by_writer.items()}
    teachers = [writer for writer in sorted(by_writer) if writer != STUDENT]
    teacher_logits = [logit for writer in teachers for logit in by_writer[writer]]
    acc_teacher = compute_accuracy(teacher_logits, [0] * len(teacher_logits))
    gap = sum(by_writer[STUDENT]) / len(by_writer[STUDENT]) - sum(teacher_logits) / len(teacher_logits)
    return {
        names.HELD_OUT_ACCURACY: (shares[STUDENT] + acc_teacher) / 2,
        names.HELD_OUT_ACCURACY_OF.format(STUDENT): shares[STUDENT],
        names.HELD_OUT_ACCURACY_OF.format(TEACHERS): acc_teacher,
        **{names.HELD_OUT_ACCURACY_OF.format(teacher): shares[teacher] for teacher in teachers},
        names.HELD_OUT_LOGIT_GAP: gap,
        names.CALIBRATION_ERROR: calibration_error(logits, marks),
        names.LENGTH_ACCURACY: length_accuracy(lengths[True], lengths[False]),
    }

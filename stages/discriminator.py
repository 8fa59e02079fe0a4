"""Discriminator: learns to tell the warm-started student's answers from the teachers' (§3.2, Eq. 1).

Reads    data/warm_start, data/rollout, data/pool; params: discriminator, seed
Writes   data/discriminator; reports/discriminator/{metrics.json,history.csv}
Run      dvc repro discriminator

Some questions are held out; accuracy on their answers says whether there is anything to tell apart, and the accuracy of a
model that sees nothing but lengths says how much of it is mere length (trap T33).
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from stages.imitation.discriminator import Discriminator, accuracy, discriminator_loss, logits_of, text_packs
from stages.imitation.draws import TeacherAnswer, balanced_draw, plain_draw, teacher_answers
from stages.imitation.rewards import STUDENT
from stages.job import Job, places_of_step, seed_for
from stages.job.blocks import Discriminator as Block
from stages.job.files import read_shards
from stages.training import Trainer, TrainingState, learning_rate
from stages.vlm import load_network, load_reader, open_checkpoint


@dataclass(frozen=True)
class Texts:
    """What is known about one question: texts of both sides, none of them cut."""

    question_id: str
    student: tuple[str, ...]
    teachers: tuple[TeacherAnswer, ...]


def run(job: Job) -> None:
    """Writes the pre-trained discriminator."""
    block = job.block(Block)
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    reader = load_reader(checkpoint)
    discriminator = Discriminator(load_network(checkpoint, reader), job.seed("head"))
    training, held_out = split(texts_of_both(job), block.held_out_share, job.seed("held out"))

    def texts_of_step(step: int) -> tuple[list[str], list[int]]:
        texts: list[str] = []
        labels: list[int] = []
        for place in places_of_step(len(training), block.questions_per_step, step, job.seed("order")):
            question, seed = training[place], job.seed("draw", step, training[place].question_id)
            count = min(block.responses_per_side, len(question.student), len(question.teachers))
            texts += plain_draw(question.student, count, seed)
            texts += [answer.text for answer in balanced_draw(question.teachers, count, seed)]
            labels += [1] * count + [0] * count
        return texts, labels

    with job.timed("train"):
        trainer = Trainer(discriminator, block, job.params.runtime)
        state = TrainingState(job, {"discriminator": trainer})
        history = state.rows("history")
        for step in state.steps(block.steps, "discriminator"):
            texts, labels = texts_of_step(step)
            wanted, loss, right, done = torch.tensor(labels, dtype=torch.float32), 0.0, 0, 0
            packs = text_packs(reader, texts, block.tokens_per_pack)
            for number, pack in enumerate(packs):
                logits = discriminator(pack)
                part = wanted[done : done + len(logits)]
                done += len(logits)
                pack_loss = discriminator_loss(logits, part, len(texts))
                trainer.backward(pack_loss, last=number == len(packs) - 1)
                loss += float(pack_loss.detach())
                right += int(((logits > 0) == (part > 0.5)).sum())
            norm = trainer.step(learning_rate(block, step))
            history.append({"step": step + 1, "loss": loss, "accuracy": right / len(texts), "grad_norm": norm})

    metrics = measured(discriminator, reader, held_out, block.tokens_per_pack)
    with job.writing() as folder:
        discriminator.save(folder)
    job.write_metrics({**metrics, "questions": {"training": len(training), "held_out": len(held_out)}})
    job.write_history(history)
    job.progress.table("discriminator on held-out questions", [metrics])


def texts_of_both(job: Job) -> list[Texts]:
    """Student and teacher texts of every question that has both, in the order of the pool."""
    student: dict[str, list[str]] = defaultdict(list)
    for row in read_shards(job.input("data/rollout")).to_pylist():
        if row["finish_reason"] == "stop" and row["response"]:
            student[row["question_id"]].append(row["response"])
    both = []
    for row in read_shards(job.input("data/pool")).to_pylist():
        teachers = tuple(answer for answer in teacher_answers(row) if answer.finish_reason == "stop" and answer.text)
        if teachers and student[row["question_id"]]:
            both.append(Texts(row["question_id"], tuple(student[row["question_id"]]), teachers))
    if len(both) < 2:
        raise ValueError(f"{len(both)} questions have whole answers of student and teachers; the discriminator needs more")
    return both


def split(texts: list[Texts], held_out_share: float, seed: int) -> tuple[list[Texts], list[Texts]]:
    """Training and held-out questions; which is which depends on the id and the seed alone."""
    ordered = sorted(texts, key=lambda question: seed_for("held out", seed, question.question_id))
    count = max(1, round(held_out_share * len(ordered)))
    held_out = {question.question_id for question in ordered[:count]}
    training = [question for question in texts if question.question_id not in held_out]
    return training, [question for question in texts if question.question_id in held_out]


def measured(discriminator: Discriminator, reader: Any, held_out: list[Texts], tokens_per_pack: int) -> dict[str, float]:
    """Accuracy on held-out texts, in all and by writer, the gap of mean logits, and the accuracy of length alone."""
    writers = [(STUDENT, text) for question in held_out for text in question.student]
    writers += [(answer.teacher, answer.text) for question in held_out for answer in question.teachers]
    logits = logits_of(discriminator, reader, [text for _, text in writers], tokens_per_pack)
    by_writer: dict[str, list[float]] = defaultdict(list)
    for (writer, _), logit in zip(writers, logits, strict=True):
        by_writer[writer].append(logit)
    shares = {w: accuracy(found, [int(w == STUDENT)] * len(found)) for w, found in by_writer.items()}
    teachers = [writer for writer in sorted(by_writer) if writer != STUDENT]
    teacher_logits = [logit for writer in teachers for logit in by_writer[writer]]
    acc_teacher = accuracy(teacher_logits, [0] * len(teacher_logits))
    gap = sum(by_writer[STUDENT]) / len(by_writer[STUDENT]) - sum(teacher_logits) / len(teacher_logits)
    return {
        "acc": (shares[STUDENT] + acc_teacher) / 2,
        "acc_student": shares[STUDENT],
        "acc_teacher": acc_teacher,
        **{f"acc_{teacher}": shares[teacher] for teacher in teachers},
        "logit_gap": gap,
        "acc_length_only": length_accuracy(writers),
    }


def length_accuracy(writers: list[tuple[str, str]]) -> float:
    """Balanced accuracy of the best single threshold on the number of characters: a floor that says nothing about style."""
    student = [len(text) for writer, text in writers if writer == STUDENT]
    teacher = [len(text) for writer, text in writers if writer != STUDENT]
    best = 0.5
    for threshold in set(student) | set(teacher):
        shorter = sum(length <= threshold for length in student) / len(student)
        longer = sum(length > threshold for length in teacher) / len(teacher)
        best = max(best, (shorter + longer) / 2, 1 - (shorter + longer) / 2)
    return best

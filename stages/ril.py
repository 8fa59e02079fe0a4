"""RIL: reinforcement and imitation learning of the student (Algorithm 2).

Reads    data/warm_start, data/discriminator, data/pool, data/questions, data/model/<judge>; params: ril, verdict, seed
Writes   data/ril/model: the student as an ordinary Hugging Face checkpoint; data/ril/samples: answers with rewards;
         reports/ril/{metrics.json,history.csv,validation.csv}
Run      dvc repro ril

At inference nothing but the student is needed: discriminator, judge and teachers stay behind (§1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from stages.benchmarks.scoring import is_correct
from stages.corpora import Question, read_questions
from stages.engines import (
    Answer,
    Engine,
    EngineError,
    Need,
    Request,
    TrainableEngine,
    engine_elsewhere,
    start_engine,
    start_trainable,
)
from stages.imitation.discrimination import discriminate
from stages.imitation.discriminator import Discriminator, Exhibits, Text
from stages.imitation.draws import TeacherAnswer, balanced_draw, teacher_answers
from stages.imitation.health import saturation_alarm
from stages.imitation.history import reward_metrics
from stages.imitation.judge import Item, judge_sampling, refuse_failures, room_for, verdicts
from stages.imitation.judge import Question as JudgeQuestion
from stages.imitation.rewards import STUDENT, Rewarded, Row, rewarded_group
from stages.imitation.update import Rewards, update_student
from stages.job import Job, places_of_step
from stages.job.blocks import Discriminator as DiscriminatorBlock
from stages.job.blocks import Ril, Sampling, Schedule, Verdict
from stages.job.files import read_shards, write_shards
from stages.job.switches import Objective
from stages.training import Idle, Trainer, TrainingState, learning_rate, prompt_cost, ranks, save_weights
from stages.vlm import Network, Reader, load_network, load_reader, open_checkpoint, write_card

SAMPLES = pa.schema(
    [
        ("step", pa.int32()),
        ("question_id", pa.string()),
        ("source", pa.string()),
        ("response", pa.string()),
        ("similarity", pa.float64()),
        ("answer", pa.int8()),
        ("advantage", pa.float64()),
        ("logit", pa.float64()),
    ]
)


@dataclass
class Players:
    """Everybody in the loop."""

    reader: Reader
    student: Network
    student_trainer: Trainer
    reference: Network  # the SFT student, never refreshed
    discriminator: Discriminator | None  # None where the objective has none
    discriminator_trainer: Trainer | None
    engine: TrainableEngine  # samples from the student; only the first rank's does
    judge: Engine | None  # None where the judge's verdict is no part of the reward, and on other ranks
    idle: Idle


def run(job: Job) -> None:
    """Trains the student and writes it.

    Raises RuntimeError when more verdicts of a step fail than verdict.max_failed_share allows.
    """
    block = job.block(Ril)
    objective = block.resolved(job.block(DiscriminatorBlock))
    if block.kl_weight == 0:
        job.progress.say("ril.kl_weight is 0: in the paper's Table 5b the student then falls far below its start")
    questions = {question.id: question for question in read_questions(job.input("data/questions"), "imitation")}
    pool = {row["question_id"]: teacher_answers(row) for row in read_shards(job.input("data/pool")).to_pylist()}
    usable = [questions[name] for name in pool if name in questions]
    validation = read_questions(job.input("data/questions"), "validation")
    players = gathered(job, block, objective)

    trainers = {"student": players.student_trainer, "discriminator": players.discriminator_trainer}
    state = TrainingState(job, {name: trainer for name, trainer in trainers.items() if trainer})
    history, samples, scores = state.rows("history"), state.rows("samples"), state.rows("validation")

    def validate(step: int) -> None:
        with job.timed("validate"):
            share = ranks().from_first(lambda: validated(players, validation, block))
        scores.append({"step": step, "validation": share})
        if block.keep == "best" and kept_step(scores, block) == step:
            state.copy = players.student_trainer.copied_state()

    if state.first:
        players.engine.update_weights(players.student_trainer.state_dict().items())
    else:
        validate(0)
    for step in state.steps(block.steps, "RIL"):
        chosen = [usable[i] for i in places_of_step(len(usable), block.questions_per_step, step, job.seed("order"))]

        # Algorithm 2, lines 3 and 4: G answers of the student, G of the teachers
        groups = ranks().from_first(partial(answered, job, players, state, chosen, pool, step))
        every_row = [row for rows in groups for row in rows]

        # line 5: the discriminator learns from all 2G; line 6: rewards and advantages of all 2G, by the updated discriminator
        with job.timed("discriminator"):
            scored, seen = scored_rows(job, players, chosen, groups, objective)
        logits = iter(scored or [])
        rewarded = [rewarded_group(rows, [next(logits) for _ in rows] if scored else None, objective) for rows in groups]

        # line 7: one update of the student on all 2G (Eq. 2)
        with job.timed("update"):
            own = ranks().share(list(zip(chosen, rewarded, strict=True)), cost)
            prompts = players.reader.prompts([(chosen[place].messages, chosen[place].images) for place in own])
            rewards = [Rewards(prompt, tuple(rewarded[place])) for prompt, place in zip(prompts, own, strict=True)]
            rate, idle = learning_rate(block, step), players.idle
            updated = update_student(
                players.student, players.student_trainer, players.reference, rewards, block, rate, objective, idle
            )
        with job.timed("sync"):
            players.engine.update_weights(players.student_trainer.state_dict().items())

        history.append({"step": step + 1, **reward_metrics(every_row, rewarded), **seen, **updated})
        if alarm := saturation_alarm(history, job.block(DiscriminatorBlock).alarm_steps):
            job.progress.say(f"step {step + 1}: {alarm}")
        samples += sample_rows(step + 1, chosen[: block.samples_per_step], rewarded)
        if (step + 1) % block.validation_every == 0 or step + 1 == block.steps:
            validate(step + 1)

    write(job, players, state)


def gathered(job: Job, block: Ril, objective: Objective) -> Players:
    """Loads everybody whom the objective needs."""
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    judge = open_checkpoint(job.input(f"data/model/{job.block(Verdict).model}"))
    runtime = job.params.runtime
    here = ranks()
    need = Need(job.store / "logs", say=job.progress.say, own_process=here.count > 1)
    with job.timed("start"):
        engine = start_trainable(checkpoint, runtime, need) if here.first else engine_elsewhere(checkpoint)
        judge_engine = start_engine(judge, runtime, need) if objective.judged and here.first else None
        reader = load_reader(checkpoint)
        student, reference = load_network(checkpoint, reader), load_network(checkpoint, reader)
        reference.model.requires_grad_(False)
        if block.freeze_vision:
            student.freeze_vision()
        discriminator, trainer = pretrained(job, block, reader) if objective.discriminated else (None, None)
        return Players(
            reader=reader,
            student=student,
            student_trainer=Trainer(student.model, block, runtime),
            reference=reference,
            discriminator=discriminator,
            discriminator_trainer=trainer,
            engine=engine,
            judge=judge_engine,
            idle=Idle(reader),
        )


def pretrained(job: Job, block: Ril, reader: Reader) -> tuple[Discriminator, Trainer]:
    """The discriminator as its stage left it, with a trainer at the loop's constant rate."""
    network = load_network(open_checkpoint(job.input("data/warm_start")), reader)
    discriminator = Discriminator(network, seed=0, sees=job.block(DiscriminatorBlock).sees)
    discriminator.load(job.input("data/discriminator"))
    constant = Schedule(
        steps=block.steps,
        learning_rate=block.discriminator_learning_rate,
        weight_decay=block.weight_decay,
        max_grad_norm=block.max_grad_norm,
        tokens_per_pack=block.tokens_per_pack,
    )
    return discriminator, Trainer(discriminator, constant, job.params.runtime)


def scored_rows(
    job: Job, players: Players, questions: Sequence[Question], groups: Sequence[Sequence[Row]], objective: Objective
) -> tuple[list[float] | None, dict[str, float]]:
    """The discriminator's logit of every row, group by group, and what to log; None where there is no discriminator."""
    if players.discriminator is None or players.discriminator_trainer is None:
        return None, {}
    block, loop = job.block(DiscriminatorBlock), job.block(Ril)
    rows = [row for group in groups for row in group]
    texts = [Text(row.text, q.id, q.messages, q.images) for q, group in zip(questions, groups, strict=True) for row in group]
    pairs = objective.discriminator_loss == "bradley_terry"
    exhibits = Exhibits(players.reader, loop.tokens_per_pack, block.sees, together=pairs)
    return discriminate(
        players.discriminator,
        players.discriminator_trainer,
        exhibits,
        rows,
        texts,
        objective,
        loop.inner_updates,
        loop.discriminator_learning_rate,
        block.pause_above,
    )


def answered(
    job: Job,
    players: Players,
    state: TrainingState,
    questions: Sequence[Question],
    pool: Mapping[str, Sequence[TeacherAnswer]],
    step: int,
) -> list[list[Row]]:
    """The step's 2G rows to each question with their verdicts, the student's first; those of an earlier run, if it kept them."""
    block = job.block(Ril)
    if (recorded := state.recorded(step)) is not None:
        return [[row_from_json(row) for row in rows] for rows in recorded]
    with job.timed("sample"):
        groups = sampled(job, players, questions, block, step)
    for question, rows in zip(questions, groups, strict=True):
        answers = balanced_draw(pool[question.id], block.group, job.seed("draw", step, question.id))
        rows += [teacher_row(players.reader, answer) for answer in answers]
    with job.timed("judge"):
        groups = judged(job, players.judge, questions, groups) if players.judge else groups
    state.record(step, [[asdict(row) for row in rows] for rows in groups])
    return groups


def cost(question_and_rows: tuple[Question, Sequence[Rewarded]]) -> float:
    """About how many tokens a group has."""
    question, rows = question_and_rows
    return prompt_cost(question.messages, question.images) + sum(len(one.row.token_ids) for one in rows)


def sampled(job: Job, players: Players, questions: Sequence[Question], block: Ril, step: int) -> list[list[Row]]:
    """G answers of the student to each question, as rows that wait for a verdict."""
    compared = block.rollout_correction != "none"
    requests = [
        Request(q.id, q.messages, q.images, block.sampling, block.group, job.seed("sample", step, q.id) % 2**62, compared)
        for q in questions
    ]
    groups = generated(players.engine, requests)
    failed = [answer for answers in groups for answer in answers if answer.failed]
    if failed:
        raise EngineError(f"{len(failed)} answers of the student failed in step {step}; the first: {failed[0].finish_reason}")
    return [[student_row(answer) for answer in answers] for answers in groups]


def generated(engine: Engine, requests: Sequence[Request]) -> list[list[Answer]]:
    """The answers to each request, in the order of the requests."""
    found = dict(engine.generate(requests))
    return [found[index] for index in range(len(requests))]


def student_row(answer: Answer) -> Row:
    """An answer of the student; its token ids are the engine's own, never re-tokenised (trap T6)."""
    return Row(STUDENT, answer.text, answer.token_ids, answer.finish_reason, None, answer.log_probs)


def teacher_row(reader: Reader, answer: TeacherAnswer) -> Row:
    """A stored answer of a teacher in the student's tokens, with the verdict it got once for all experiments."""
    ids = tuple(reader.chat.response_ids(answer.text))
    return Row(answer.teacher, answer.text, ids, answer.finish_reason, answer.verdict)


def judged(job: Job, judge: Engine, questions: Sequence[Question], groups: list[list[Row]]) -> list[list[Row]]:
    """The rows with verdicts on the student's answers, all of which are asked in one call.

    Two engines in this process work in turn, so the judge starts when the student has answered; one on a server of its own could
    start on each answer as it is finished.

    Raises RuntimeError when too many verdicts failed: a judge that does not answer must not train the student.
    """
    block = job.block(Verdict)
    greedy = judge_sampling(block)

    def ask(asked: Sequence[JudgeQuestion]) -> list[Answer | None]:
        requests = [Request(one.id, one.messages, one.images, greedy) for one in asked]
        return [None if answer.failed else answer for (answer,) in generated(judge, requests)]

    waiting = [(q, row) for q, rows in zip(questions, groups, strict=True) for row in rows if row.source == STUDENT]
    fits = room_for(judge.chat, judge.checkpoint.context_tokens, block.max_tokens)
    found = verdicts([Item(q.id, q.text, q.answer, row.text, block.rule_first) for q, row in waiting], ask, fits)
    refuse_failures(found, block.max_failed_share, f"{job.name}, this step")
    by_row = {id(row): verdict.verdict for (_, row), verdict in zip(waiting, found, strict=True)}
    return [[replace(row, verdict=by_row.get(id(row), row.verdict)) for row in rows] for rows in groups]


def validated(players: Players, questions: Sequence[Question], block: Ril) -> float:
    """Share of the validation questions that the student answers right, greedily."""
    greedy = Sampling(temperature=0.0, max_tokens=block.sampling.max_tokens)
    requests = [Request(question.id, question.messages, question.images, greedy) for question in questions]
    answers = [answers[0] for answers in generated(players.engine, requests)]
    right = [is_correct(answer.text, question.answer) for answer, question in zip(answers, questions, strict=True)]
    return sum(right) / len(right)


def sample_rows(step: int, questions: Sequence[Question], groups: Sequence[Sequence[Rewarded]]) -> list[dict[str, Any]]:
    """Rows of SAMPLES: what was answered to these questions and what it earned."""
    return [
        {
            "step": step,
            "question_id": question.id,
            "source": one.row.source,
            "response": one.row.text,
            "similarity": one.similarity,
            "answer": one.answer,
            "advantage": one.advantage,
            "logit": one.logit,
        }
        for question, group in zip(questions, groups, strict=False)
        for one in group
    ]


def row_from_json(row: Mapping[str, Any]) -> Row:
    """The row that `asdict` and JSON made `row` of."""
    sampled = row["sampled_log_probs"]
    lists = {"token_ids": tuple(row["token_ids"]), "sampled_log_probs": None if sampled is None else tuple(sampled)}
    return Row(**{**row, **lists})


def kept_step(scores: Sequence[Mapping[str, Any]], block: Ril) -> int:
    """After which step the student becomes the stage's model: the last, or the first of those that validate best."""
    if block.keep == "last":
        return int(scores[-1]["step"])
    return int(max(scores, key=lambda row: (row["validation"], -row["step"]))["step"])


def write(job: Job, players: Players, state: TrainingState) -> None:
    """Writes the student, the samples and the curves."""
    weights = players.student_trainer.state_dict() if state.copy is None else state.copy
    if not ranks().first:
        return
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    history, scores = state.rows("history"), state.rows("validation")
    with job.writing() as folder:
        save_weights(players.student.model, folder / "model", weights)
        players.reader.save(folder / "model")
        write_card(folder / "model", checkpoint.family, checkpoint.precision, checkpoint.context_tokens)
        write_shards(folder / "samples", state.rows("samples"), SAMPLES)
    job.write_history(history)
    job.write_history(scores, "validation.csv")
    last = {key: value for key, value in (history[-1] if history else {}).items() if value is not None}
    finite = {key: value for key, value in last.items() if math.isfinite(value)}
    ends = {"start": scores[0]["validation"], "end": scores[-1]["validation"]}
    kept = kept_step(scores, job.block(Ril))
    job.write_metrics({"validation": {**ends, "kept_step": kept}, "last_step": finite})
    job.progress.table("validation", scores)
    players.engine.close()
    if players.judge:
        players.judge.close()

"""RIL: reinforcement and imitation learning of the student (Algorithm 2).

Reads    data/warm_start, data/discriminator, data/pool, data/questions, data/model/<judge>; params: ril, verdict, seed
Writes   data/ril/model: the student as an ordinary Hugging Face checkpoint (ril.keep: both: the last one in
         data/ril/last too); data/ril/samples: answers with rewards;
         reports/ril/{metrics.json,history.csv,validation.csv,rejects.jsonl}
Run      dvc repro ril

At inference nothing but the student is needed: discriminator, judge and teachers stay behind (§1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from stages.adversary.adversary import discriminate
from stages.adversary.diagnostics import saturation_alarm
from stages.adversary.discriminator import Discriminator, Exhibits, Text
from stages.config.discriminator import Discriminator as DiscriminatorBlock
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.config.switches import Objective
from stages.config.verdict import Verdict
from stages.corpora.rows import Question, read_questions
from stages.corpora.scoring import is_correct
from stages.engines.engine import Answer, Engine, EngineError, Request, TrainableEngine
from stages.engines.start import Need, engine_elsewhere, start_engine, start_trainable
from stages.groups.pack import Group
from stages.groups.response import STUDENT, Row
from stages.job.epochs import places_of_step
from stages.job.files import read_shards, write_shards
from stages.job.job import Job
from stages.job.rejects import Reject, refused, write_rejects
from stages.judging.queue import Judging
from stages.policy.metrics import reward_metrics
from stages.policy.rewards import Rewarded, candidates, rewarded_group
from stages.policy.update import Rewards, reference_pass, update_student
from stages.responses.draws import TeacherAnswer, balanced_draw, teacher_answers
from stages.training.passes import Idle, prompt_cost
from stages.training.ranks import ranks
from stages.training.state import TrainingState
from stages.training.trainer import Trainer, learning_rate, save_weights
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.context_limit import too_long
from stages.vlm.reader import Network, Reader, load_network, load_reader

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

    checkpoint: Checkpoint  # of the SFT student
    reader: Reader
    student: Network
    student_trainer: Trainer
    reference: Network  # the SFT student, never refreshed
    discriminator: Discriminator | None  # None where the objective has none
    discriminator_trainer: Trainer | None
    engine: TrainableEngine  # samples from the student; only the first rank's does
    judge: Engine | None  # None where the judge's verdict is no part of the reward, and on other ranks
    idle: Idle

    def refusal(self, question: Question) -> str | None:
        """Why the question is more than the student takes; None when it is not."""
        return too_long(self.reader, self.checkpoint, question.messages, question.images)


def run(job: Job) -> None:
    """Trains the student and writes it, and which questions are longer than it takes.

    Raises RuntimeError when more verdicts of a step fail than verdict.max_failed_share allows, TooManyRejects when more
    than ril.max_reject_share of the questions are too long.
    """
    block = job.block(Ril)
    objective = block.resolved(job.block(DiscriminatorBlock))
    if block.kl_weight == 0:
        job.progress.say("ril.kl_weight is 0: in the paper's Table 5b the student then falls far below its start")
    questions = {question.id: question for question in read_questions(job.input("data/questions"), "imitation")}
    pool = {row["question_id"]: teacher_answers(row) for row in read_shards(job.input("data/pool")).to_pylist()}
    validation = read_questions(job.input("data/questions"), "validation")
    players = gathered(job, block, objective)
    usable, rejects = fitting(job, players, [questions[name] for name in pool if name in questions], validation)
    if objective.references:
        pool = {question.id: [reference(question)] for question in usable}

    trainers = {"student": players.student_trainer, "discriminator": players.discriminator_trainer}
    state = TrainingState(job, {name: trainer for name, trainer in trainers.items() if trainer})
    history, samples, scores = state.rows("history"), state.rows("samples"), state.rows("validation")

    def validate(step: int) -> None:
        with job.timed("validate"):
            share = ranks().from_first(lambda: validated(players, validation, block))
        scores.append({"step": step, "validation": share})
        if block.keep != "last" and kept_step(scores, block) == step:
            state.copy = players.student_trainer.copied_state()

    if state.first:
        players.engine.update_weights(players.student_trainer.state_dict().items())
    else:
        validate(0)
    for step in state.steps(block.steps, "RIL"):
        chosen = [usable[i] for i in places_of_step(len(usable), block.questions_per_step, step, job.seed("order"))]

        # Algorithm 2, lines 3 and 4: G answers of the student, each of which goes to the judge, and G of the teachers
        judging = Judging(players.judge, job.block(Verdict), f"{job.name}, step {step + 1}") if players.judge else None
        groups = ranks().from_first(partial(answered, job, players, state, chosen, pool, step, judging))

        # line 5, by all 2G, and what line 7 can know without rewards: a judge on a server is at work meanwhile
        with job.timed("discriminator"):
            scored, seen = scored_rows(job, players, chosen, groups, objective)
        with job.timed("reference"):
            own = ranks().share(list(zip(chosen, groups, strict=True)), cost)
            prompts = players.reader.prompts([(chosen[place].messages, chosen[place].images) for place in own])
            candidate = [tuple(row.token_ids for row in candidates(groups[place], objective)) for place in own]
            packed = [Group(prompt, rows) for prompt, rows in zip(prompts, candidate, strict=True)]
            trainer, idle = players.student_trainer, players.idle
            known = reference_pass(players.student, players.reference, packed, block, objective, trainer, idle)
        with job.timed("judge"):
            groups = ranks().from_first(partial(judged, state, step, groups, judging))

        # line 6: rewards and advantages of all 2G, by the updated discriminator
        every_row = [row for rows in groups for row in rows]
        logits = iter(scored or [])
        rewarded = [
            rewarded_group(rows, [next(logits) for _ in rows] if scored else None, objective) for rows in groups
        ]

        # line 7: one update of the student on all 2G (Eq. 2)
        with job.timed("update"):
            its = zip(prompts, (tuple(rewarded[place]) for place in own), known, strict=True)
            rewards, rate = [Rewards(*one) for one in its], learning_rate(block, step)
            updated = update_student(players.student, trainer, players.reference, rewards, block, rate, objective, idle)
        with job.timed("sync"):
            players.engine.update_weights(players.student_trainer.state_dict().items())

        history.append({"step": step + 1, **reward_metrics(every_row, rewarded), **seen, **updated})
        if alarm := saturation_alarm(history, job.block(DiscriminatorBlock).alarm_steps):
            job.progress.say(f"step {step + 1}: {alarm}")
        samples += sample_rows(step + 1, chosen[: block.samples_per_step], rewarded)
        if (step + 1) % block.validation_every == 0 or step + 1 == block.steps:
            validate(step + 1)

    write(job, players, state, rejects)


def fitting(
    job: Job, players: Players, questions: Sequence[Question], validation: Sequence[Question]
) -> tuple[list[Question], list[Reject]]:
    """The questions that go into the student, and the others with their reasons; of validation those that count as
    wrong.
    """
    block = job.block(Ril)
    reasons = {question.id: reason for question in questions if (reason := players.refusal(question))}
    rejects = refused(job.name, reasons, block.group, len(questions), block.max_reject_share)
    rejects += [Reject(q.id, 0, 1, "refused", reason) for q in validation if (reason := players.refusal(q))]
    if rejects:
        job.progress.say(
            f"{job.name}: {len(rejects)} questions are too long; reasons in {job.reports / 'rejects.jsonl'}"
        )
    return [question for question in questions if question.id not in reasons], rejects


def gathered(job: Job, block: Ril, objective: Objective) -> Players:
    """Loads everybody whom the objective needs."""
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    judge = open_checkpoint(job.input(f"data/model/{job.block(Verdict).model}"))
    runtime = job.block(Runtime)
    here = ranks()
    need = Need(job.store / "logs", say=job.progress.say, own_process=here.count > 1)
    with job.timed("start"):
        engine = start_trainable(checkpoint, runtime, need) if here.first else engine_elsewhere(checkpoint)
        judge_engine = start_engine(judge, runtime, need) if objective.judged and here.first else None
        reader = load_reader(checkpoint)
        student, reference = load_network(checkpoint, reader), load_network(checkpoint, reader)
        if block.freeze_vision:
            student.freeze_vision()
        student_trainer = Trainer(student.model, block, runtime)
        reference.model.requires_grad_(False).to(student.device)
        discriminator, trainer = pretrained(job, block, reader) if objective.discriminated else (None, None)
        return Players(
            checkpoint=checkpoint,
            reader=reader,
            student=student,
            student_trainer=student_trainer,
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
    return discriminator, Trainer(discriminator, constant, job.block(Runtime))


def scored_rows(
    job: Job, players: Players, questions: Sequence[Question], groups: Sequence[Sequence[Row]], objective: Objective
) -> tuple[list[float] | None, dict[str, float]]:
    """The discriminator's logit of every row, group by group, and what to log; None where there is no discriminator."""
    if players.discriminator is None or players.discriminator_trainer is None:
        return None, {}
    block, loop = job.block(DiscriminatorBlock), job.block(Ril)
    rows = [row for group in groups for row in group]
    texts = [
        Text(row.text, q.id, q.messages, q.images) for q, group in zip(questions, groups, strict=True) for row in group
    ]
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
    judging: Judging | None,
) -> list[list[Row]]:
    """The step's 2G rows to each question, the student's first; `judging` is asked about those that wait for a verdict.

    Rows that an earlier run recorded are used again, with their verdicts where these were there.
    """
    block = job.block(Ril)
    if (recorded := state.recorded(step)) is not None:
        groups = [[row_from_json(row) for row in rows] for rows in recorded["groups"]]
        for number, (question, rows) in enumerate(zip(questions, groups, strict=True)):
            if judging and not recorded["judged"]:
                judging.put(number, question, [row for row in rows if row.source == STUDENT])
        return groups
    with job.timed("sample"):
        groups = sampled(job, players, questions, block, step, judging)
    for question, rows in zip(questions, groups, strict=True):
        answers = balanced_draw(pool[question.id], block.group, job.seed("draw", step, question.id))
        rows += [teacher_row(players.reader, answer) for answer in answers]
    record(state, step, groups, judged=judging is None)
    return groups


def cost(question_and_rows: tuple[Question, Sequence[Row]]) -> float:
    """About how many tokens a group has."""
    question, rows = question_and_rows
    return prompt_cost(question.messages, question.images) + sum(len(row.token_ids) for row in rows)


def sampled(
    job: Job, players: Players, questions: Sequence[Question], block: Ril, step: int, judging: Judging | None
) -> list[list[Row]]:
    """G answers of the student to each question, as rows that wait for a verdict; the judge hears of each as it is
    finished.

    The G answers to one question are one request and are finished together.
    """
    if block.objective == "sft":
        return [[] for _ in questions]
    compared = block.rollout_correction != "none"
    requests = [
        Request(
            q.id, q.messages, q.images, block.sampling, block.group, job.seed("sample", step, q.id) % 2**62, compared
        )
        for q in questions
    ]
    groups: dict[int, list[Row]] = {}
    for number, answers in players.engine.generate(requests):
        if failed := [answer for answer in answers if answer.failed]:
            raise EngineError(
                f"{len(failed)} answers of the student failed in step {step}; the first: {failed[0].finish_reason}"
            )
        groups[number] = [student_row(answer) for answer in answers]
        if judging:
            judging.put(number, questions[number], groups[number])
    return [groups[number] for number in range(len(questions))]


def generated(engine: Engine, requests: Sequence[Request]) -> list[list[Answer]]:
    """The answers to each request, in the order of the requests."""
    found = dict(engine.generate(requests))
    return [found[index] for index in range(len(requests))]


def student_row(answer: Answer) -> Row:
    """An answer of the student; its token ids are the engine's own, never re-tokenised (trap T6)."""
    return Row(STUDENT, answer.text, answer.token_ids, answer.finish_reason, None, answer.log_probs)


def reference(question: Question) -> TeacherAnswer:
    """The written-out reference of a question as an answer: its target, where it has one as in the warm start."""
    return TeacherAnswer("reference", 0, question.target or question.answer, 1, "stop")


def teacher_row(reader: Reader, answer: TeacherAnswer) -> Row:
    """A stored answer of a teacher in the student's tokens, with the verdict it got once for all experiments."""
    ids = tuple(reader.chat.response_ids(answer.text))
    return Row(answer.teacher, answer.text, ids, answer.finish_reason, answer.verdict)


def judged(state: TrainingState, step: int, groups: list[list[Row]], judging: Judging | None) -> list[list[Row]]:
    """The rows with verdicts on the student's answers, which are waited for; as they are where nothing was asked."""
    if judging is None or not judging.wanted:
        return groups
    found = judging.verdicts()
    groups = [
        [replace(row, verdict=found[number, place]) if row.source == STUDENT else row for place, row in enumerate(rows)]
        for number, rows in enumerate(groups)
    ]
    record(state, step, groups, judged=True)
    return groups


def record(state: TrainingState, step: int, groups: Sequence[Sequence[Row]], judged: bool) -> None:
    """Keeps the step's answers, and their verdicts once they are there, so that a resumed step does not pay for them
    again.
    """
    state.record(step, {"judged": judged, "groups": [[asdict(row) for row in rows] for rows in groups]})


def validated(players: Players, questions: Sequence[Question], block: Ril) -> float:
    """Share of the validation questions that the student answers right, greedily; one that it can't take is not
    right.
    """
    greedy = Sampling(temperature=0.0, max_tokens=block.sampling.max_tokens)
    asked = [question for question in questions if players.refusal(question) is None]
    requests = [Request(question.id, question.messages, question.images, greedy) for question in asked]
    answers = [answers[0] for answers in generated(players.engine, requests)]
    right = [is_correct(answer.text, question.answer) for answer, question in zip(answers, asked, strict=True)]
    return sum(right) / len(questions)


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


def write(job: Job, players: Players, state: TrainingState, rejects: Sequence[Reject]) -> None:
    """Writes the student, the samples, the curves and the questions that were too long."""
    now = players.student_trainer.state_dict()
    if not ranks().first:
        return
    write_rejects(job.reports / "rejects.jsonl", rejects)
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    history, scores = state.rows("history"), state.rows("validation")
    best = now if state.copy is None else state.copy
    kept = {"model": best, **({"last": now} if job.block(Ril).keep == "both" else {})}
    with job.writing() as folder:
        for name, weights in kept.items():
            save_weights(players.student.model, folder / name, weights)
            players.reader.save(folder / name)
            write_card(folder / name, checkpoint.family, checkpoint.precision, checkpoint.context_tokens)
        write_shards(folder / "samples", state.rows("samples"), SAMPLES)
    job.write_history(history)
    job.write_history(scores, "validation.csv")
    last = {key: value for key, value in (history[-1] if history else {}).items() if value is not None}
    finite = {key: value for key, value in last.items() if math.isfinite(value)}
    ends = {"start": scores[0]["validation"], "end": scores[-1]["validation"]}
    step = kept_step(scores, job.block(Ril))
    job.write_metrics({"validation": {**ends, "kept_step": step}, "last_step": finite})
    job.progress.table("validation", scores)
    players.engine.close()
    if players.judge:
        players.judge.close()

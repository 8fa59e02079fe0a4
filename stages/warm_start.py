"""Warm start: supervised fine-tuning of the base student (App. C).

Reads    data/model/student, data/questions/warm_start; params: warm_start, seed
Writes   data/warm_start: the student as a Hugging Face checkpoint;
         reports/warm_start/{metrics.json,history.csv,rejects.jsonl}
Run      dvc repro warm_start

With `warm_start.lora` adapters are trained. The checkpoint has them merged; data/warm_start/adapter has them alone, in
peft's format. `warm_start.steps: 0` passes the base student through (Table 5e, "without SFT").
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stages.config.runtime import Runtime
from stages.config.warm_start import WarmStart
from stages.corpora.rows import Question, read_questions
from stages.groups.pack import Group
from stages.job import metric_names as names
from stages.job.epochs import pick_places
from stages.job.job import Job
from stages.job.rejects import Reject, make_too_long_rejects, write_rejects
from stages.training.passes import estimate_prompt_cost
from stages.training.ranks import get_ranks
from stages.training.sft import train_sft
from stages.training.trainer import save_weights
from stages.vlm.checkpoint import Checkpoint, open_verified, write_card
from stages.vlm.context_limit import explain_too_long
from stages.vlm.reader import Reader, load_network, load_reader


def run(job: Job) -> None:
    """Writes the warm-started student; questions that exceed the model's context go to rejects.jsonl.

    Raises TooManyRejects when those are more than max_reject_share of all questions.
    """
    block = job.block(WarmStart)
    checkpoint = open_verified(job.input("data/model/student"), job.store)
    questions = [q for q in read_questions(job.input("data/questions"), "warm_start") if q.target]
    if not questions:
        raise ValueError(
            "data/questions/warm_start has no question with a target answer; SFT needs an assistant's turn"
        )
    reader = load_reader(checkpoint)
    questions, rejects = drop_long_questions(questions, reader, checkpoint, block)
    network = load_network(checkpoint, reader, job.block(Runtime))
    if block.freeze_vision:
        network.freeze_vision()
    if block.lora and block.steps:
        network = network.add_adapter("student", block.lora, job.seed("adapter"))

    def make_step_groups(step: int) -> list[Group]:
        chosen = [questions[place] for place in pick_places(len(questions), block.rows_per_step, step, job.seed())]
        chosen = [chosen[place] for place in get_ranks().share(chosen, estimate_question_cost)]
        prompts = reader.make_prompts([(question.messages, question.images) for question in chosen])
        targets = [tuple(reader.chat.encode_response(question.target or "")) for question in chosen]
        return [
            Group(prompt, (target,), name=question.id)
            for question, prompt, target in zip(chosen, prompts, targets, strict=True)
        ]

    state: dict[str, Tensor] | None = None
    history: list[dict[str, Any]] = []
    with job.measure_time("train"):
        if block.steps:
            trainer, history = train_sft(job, network, reader, block, make_step_groups, "warm start")
            state = trainer.state_dict()
    if not get_ranks().first:
        return
    with job.writing() as folder:
        save_weights(network.model, folder, None if state is None else dict(network.iter_weights(state)))
        if state is not None:
            network.save_adapter(state, folder, "data/model/student")
        reader.save(folder)
        write_card(folder, checkpoint.family, checkpoint.precision, checkpoint.context_tokens)
    write_rejects(job.reports / "rejects.jsonl", rejects)
    if rejects:
        job.progress.say(
            f"warm_start: {len(rejects)} questions are too long; reasons in {job.reports / 'rejects.jsonl'}"
        )
    job.write_metrics({"questions": len(questions), names.LOSS: history[-1][names.LOSS] if history else None})
    nothing = {names.STEP: 0, names.LOSS: None, names.GRAD_NORM: None, names.LEARNING_RATE: None}
    job.write_history(history or [nothing])


def estimate_question_cost(question: Question) -> float:
    """Estimates the tokens of a question and its target."""
    return estimate_prompt_cost(question.messages, question.images, question.target or "")


def drop_long_questions(
    questions: Sequence[Question], reader: Reader, checkpoint: Checkpoint, block: WarmStart
) -> tuple[list[Question], list[Reject]]:
    """Returns the questions that fit the model's context with their targets, and rejects with their reasons."""
    reasons: dict[str, str] = {}
    for question in questions:
        target = len(reader.chat.encode_response(question.target or ""))
        if reason := explain_too_long(reader, checkpoint, question.messages, question.images, target):
            reasons[question.id] = reason
    rejects = make_too_long_rejects("warm_start", reasons, 1, len(questions), block.max_reject_share)
    return [question for question in questions if question.id not in reasons], rejects

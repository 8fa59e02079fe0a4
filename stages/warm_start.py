"""Warm start: supervised fine-tuning of the base student (App. C).

Reads    data/model/student, data/questions/warm_start; params: warm_start, seed
Writes   data/warm_start: the student as a Hugging Face checkpoint;
         reports/warm_start/{metrics.json,history.csv,rejects.jsonl}
Run      dvc repro warm_start

With `warm_start.lora` adapters are trained. The checkpoint has them merged; data/warm_start/adapter has them alone, in
peft's format. `warm_start.steps: 0` passes the base student through (Table 5e, "without SFT").
"""

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stages.config.lora import get_quantization
from stages.config.runtime import Runtime
from stages.config.warm_start import WarmStart
from stages.corpora.rows import QuestionFolder
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
from stages.vlm.published_files import write_published_files
from stages.vlm.reader import Reader, load_network, load_reader


def run(job: Job) -> None:
    """Writes the warm-started student; questions that exceed the model's context go to rejects.jsonl.

    Raises TooManyRejects when those are more than max_reject_share of all questions.
    """
    block = job.block(WarmStart)
    checkpoint = open_verified(job.input("data/model/student"), job.store)
    reader = load_reader(checkpoint)
    learned, rejects = measure_questions(job, reader, checkpoint, block)
    lora = block.lora if block.steps else None
    network = load_network(checkpoint, reader, job.block(Runtime), get_quantization(lora))
    if block.freeze_vision:
        network.freeze_vision()
    if lora:
        network = network.add_adapter("student", lora, job.seed("adapter"))

    def make_step_groups(step: int) -> list[Group]:
        places = pick_places(len(learned.questions), block.rows_per_step, step, job.seed())
        own = get_ranks().share(learned.costs[places].tolist(), float)
        chosen = [learned.questions[places[number]] for number in own]
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
    weights = None if state is None else dict(network.iter_weights(state))
    if not get_ranks().first:
        return
    with job.writing() as folder:
        save_weights(network.model, folder, weights)
        if state is not None:
            network.save_adapter(state, folder, "data/model/student")
        reader.save(folder)
        write_published_files(folder)
        shape = (checkpoint.family, checkpoint.precision, checkpoint.context_tokens)
        write_card(folder, *shape, limits=checkpoint.limits)
    write_rejects(job.reports / "rejects.jsonl", rejects)
    if rejects:
        job.progress.say(
            f"warm_start: {len(rejects)} questions are too long; reasons in {job.reports / 'rejects.jsonl'}"
        )
    job.write_metrics({"questions": len(learned.questions), names.LOSS: history[-1][names.LOSS] if history else None})
    nothing = {names.STEP: 0, names.LOSS: None, names.GRAD_NORM: None, names.LEARNING_RATE: None}
    job.write_history(history or [nothing])


@dataclass(frozen=True)
class MeasuredQuestions:
    """The questions that the student learns: 16 bytes each, and the row groups that are being read."""

    questions: QuestionFolder
    costs: np.ndarray  # [questions] float64: estimated tokens with target


def measure_questions(
    job: Job, reader: Reader, checkpoint: Checkpoint, block: WarmStart
) -> tuple[MeasuredQuestions, list[Reject]]:
    """Returns the questions that have a target and fit the model's context with it, and rejects with their reasons.

    Every rank measures a part of the rows, from the headers of their images. Raises ValueError if no question has a
    target, TooManyRejects when those that do not fit are more than max_reject_share.
    """
    folder = job.input("data/questions")
    questions, ranks = QuestionFolder(folder, "warm_start"), get_ranks()
    bounds = [len(questions) * rank // ranks.count for rank in (ranks.rank, ranks.rank + 1)]
    places, costs = array("q"), array("d")
    reasons: dict[str, str] = {}
    for place in job.progress.track(range(*bounds), "measuring questions", bounds[1] - bounds[0]):
        question = questions[place]
        if not question.target:
            continue
        target = len(reader.chat.encode_response(question.target))
        if reason := explain_too_long(reader, checkpoint, question.messages, question.images, target):
            reasons[question.id] = reason
        else:
            places.append(place)
            costs.append(estimate_prompt_cost(reader, question.messages, question.images, question.target))
    parts = ranks.gather((np.array(places, np.int64), np.array(costs, np.float64), reasons))
    kept = np.concatenate([part[0] for part in parts])
    reasons = {name: reason for part in parts for name, reason in part[2].items()}
    if not len(kept) + len(reasons):
        raise ValueError(
            "data/questions/warm_start has no question with a target answer; SFT needs an assistant's turn"
        )
    rejects = make_too_long_rejects("warm_start", reasons, 1, len(kept) + len(reasons), block.max_reject_share)
    return MeasuredQuestions(
        QuestionFolder(folder, "warm_start", kept), np.concatenate([part[1] for part in parts])
    ), rejects

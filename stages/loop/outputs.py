"""Outputs of stage `ril`: the student, sampled responses with their rewards, training curves."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from stages.config.ril import Ril
from stages.corpora.rows import Question
from stages.job.files import write_shards
from stages.job.job import Job
from stages.job.metric_names import VALIDATION
from stages.job.rejects import Reject, write_rejects
from stages.loop.models import RilModels
from stages.loop.validation import VALIDATION_SAMPLES, select_step
from stages.policy.rewards import ScoredResponse
from stages.training.ranks import get_ranks
from stages.training.state import TrainingState
from stages.training.trainer import save_weights
from stages.vlm.checkpoint import write_card
from stages.vlm.published_files import write_published_files

SAMPLE_SCHEMA = pa.schema(
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

VALIDATION_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("response", pa.string()),
        ("score", pa.float64()),  # null without a verdict
    ]
)


def make_sample_schema(functions: Sequence[str]) -> pa.Schema:
    """Returns SAMPLE_SCHEMA with a column for each function of `ril.rewards`; null where it failed."""
    return pa.schema([*SAMPLE_SCHEMA, *((f"function/{name}", pa.float64()) for name in functions)])


def make_sample_rows(
    step: int,
    questions: Sequence[Question],
    groups: Sequence[Sequence[ScoredResponse]],
    functions: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Returns rows of `make_sample_schema`: the responses to the first `questions` of a step with their rewards."""
    return [
        {
            "step": step,
            "question_id": question.id,
            "source": one.response.source,
            "response": one.response.text,
            "similarity": one.similarity,
            "answer": one.answer,
            "advantage": one.advantage,
            "logit": None if math.isnan(one.logit) else one.logit,
            **{f"function/{name}": value for name, value in zip(functions, one.functions, strict=True)},
        }
        for question, group in zip(questions, groups, strict=False)
        for one in group
    ]


def write_outputs(job: Job, models: RilModels, state: TrainingState, rejects: Sequence[Reject]) -> None:
    """Writes the student, the samples, the curves and the questions that were too long."""
    student, now = models.policy.student, models.policy.trainer.state_dict()
    block, checkpoint = job.block(Ril), models.checkpoint
    best = now if state.copy is None else state.copy
    kept = {"model": best, **({"last": now} if block.keep == "both" else {})}
    if not get_ranks().first:
        for weights in kept.values():
            dict(student.iter_weights(weights))
        return
    write_rejects(job.reports / "rejects.jsonl", rejects)
    history, scores = state.rows("history"), state.rows("validation")
    with job.writing() as folder:
        for name, weights in kept.items():
            save_weights(student.model, folder / name, dict(student.iter_weights(weights)))
            student.save_adapter(weights, folder / name, "data/warm_start")
            models.reader.save(folder / name)
            write_published_files(folder / name)
            shape = (checkpoint.family, checkpoint.precision, checkpoint.context_tokens)
            write_card(folder / name, *shape, limits=checkpoint.limits)
        functions = [one.title for one in models.policy.objective.functions]
        write_shards(folder / "samples", state.rows("samples"), make_sample_schema(functions))
        if answers := state.rows(VALIDATION_SAMPLES):
            write_shards(folder / "validation", answers, VALIDATION_SCHEMA)
    job.write_history(history)
    job.write_history(scores, "validation.csv")
    last = {key: value for key, value in (history[-1] if history else {}).items() if value is not None}
    ends = {"start": scores[0][VALIDATION], "end": scores[-1][VALIDATION]}
    job.write_metrics({VALIDATION: {**ends, "kept_step": select_step(scores, block)}, "last_step": last})
    job.progress.show_table("validation", scores)
    if ends["end"] < ends["start"]:
        job.progress.say(
            f"warning: {job.name}: the student is worse than at its start: validation {ends['start']:.1%}, then "
            f"{ends['end']:.1%}; lower ril.learning_rate or raise ril.kl_weight"
        )

"""Rollout: the warm-started student answers every question that stage `selection` keeps, N times (§3.2).

Reads    data/warm_start, data/questions, data/selection/kept; params: rollout
Writes   data/rollout: one row per answer; reports/rollout/{metrics.json,rejects.jsonl}
Run      dvc repro rollout

The discriminator is pre-trained on these answers; the loop of stage `ril` samples separate ones.
"""

from stages.config.rollout import Rollout
from stages.corpora.kept_questions import open_kept_questions
from stages.job.job import Job
from stages.responses.projection import write_answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in question order; questions without an answer go to rejects.jsonl.

    Raises TooManyRejects when more than max_reject_share of the answers are missing.
    """
    rollout = job.block(Rollout)
    questions = open_kept_questions(job.input("data/questions"), job.input("data/selection/kept"))
    statistics = write_answers(job, job.input("data/warm_start"), questions, rollout)
    job.write_metrics(statistics)
    job.progress.show_table("Answers of the warm-started student", [statistics])

"""Rollout: the warm-started student answers every question of the `imitation` split, N times (§3.2).

Reads    data/warm_start, data/questions/imitation; params: rollout
Writes   data/rollout: one row an answer; reports/rollout/{metrics.json,rejects.jsonl}
Run      dvc repro rollout

These are the student's side of the discriminator's pre-training; the loop of stage `ril` draws its own.
"""

from stages.config.rollout import Rollout
from stages.corpora.rows import QuestionFolder
from stages.job.job import Job
from stages.responses.projection import write_answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in the order of the questions, and what could not be answered as lines of rejects.jsonl.

    Raises TooManyRejects when more than max_reject_share of the answers can't be had.
    """
    rollout = job.block(Rollout)
    questions = QuestionFolder(job.input("data/questions"), "imitation")
    statistics = write_answers(job, job.input("data/warm_start"), questions, rollout)
    job.write_metrics(statistics)
    job.progress.show_table("Answers of the warm-started student", [statistics])

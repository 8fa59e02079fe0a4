"""Rollout: the warm-started student answers every question of the `imitation` split, N times (§3.2).

Reads    data/warm_start, data/questions/imitation; params: rollout
Writes   data/rollout: one row an answer; reports/rollout/metrics.json
Run      dvc repro rollout

These are the student's side of the discriminator's pre-training; the loop of stage `ril` draws its own.
"""

from stages.corpora import read_questions
from stages.job import Job
from stages.job.blocks import Rollout
from stages.job.files import write_shards
from stages.responses import ANSWERS, answer_rows, answer_statistics
from stages.responses.answers import answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in the order of the questions."""
    rollout = job.block(Rollout)
    checkpoint = job.input("data/warm_start")
    questions = read_questions(job.input("data/questions"), "imitation")
    with job.timed("generate"):
        given = answers(job, checkpoint, questions, rollout.sampling, rollout.responses, rollout.draw, job.name)
    rows = answer_rows([question.id for question in questions], given)
    with job.writing() as folder:
        write_shards(folder, rows, ANSWERS)
    statistics = answer_statistics(rows)
    job.write_metrics(statistics)
    job.progress.table("Answers of the warm-started student", [statistics])

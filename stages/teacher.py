"""Teacher: one teacher answers every question of the `imitation` split, N times (§3.2).

Reads    data/model/<teachers.<id>.model>, data/questions/imitation; params: teachers.<id>
Writes   data/teacher/<id>: one row an answer; reports/teacher/<id>/{metrics.json,rejects.jsonl}
Run      dvc repro teacher@<id>

The answers live in the response store; the out is their projection, so that a larger N, more questions or another
experiment pays only for what was never asked.
"""

from stages.config.teacher import Teacher
from stages.corpora.rows import QuestionFolder
from stages.job.job import Job
from stages.responses.projection import write_answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in the order of the questions, and what could not be answered as lines of rejects.jsonl.

    Raises TooManyRejects when more than max_reject_share of the answers can't be had.
    """
    teacher = job.block(Teacher)
    questions = QuestionFolder(job.input("data/questions"), "imitation")
    statistics = write_answers(job, job.input(f"data/model/{teacher.model}"), questions, teacher)
    job.write_metrics(statistics)
    job.progress.show_table(f"Answers of teacher {job.item}", [statistics])

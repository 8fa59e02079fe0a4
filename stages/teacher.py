"""Teacher: one teacher answers every question that stage `selection` keeps, N times (§3.2).

Reads    data/model/<teachers.<id>.model>, data/questions, data/selection/kept; params: teachers.<id>
Writes   data/teacher/<id>: one row per answer; reports/teacher/<id>/{metrics.json,rejects.jsonl}
Run      dvc repro teacher@<id>

The answers are kept in the response store and the output is a projection of it: a larger N, more questions or another
experiment generates only the missing answers.
"""

from stages.config.teacher import Teacher
from stages.corpora.kept_questions import open_kept_questions
from stages.job.job import Job
from stages.responses.projection import write_answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in question order; questions without an answer go to rejects.jsonl.

    Raises TooManyRejects when more than max_reject_share of the answers are missing.
    """
    teacher = job.block(Teacher)
    questions = open_kept_questions(job.input("data/questions"), job.input("data/selection/kept"))
    statistics = write_answers(job, job.input(f"data/model/{teacher.model}"), questions, teacher)
    job.write_metrics(statistics)
    job.progress.show_table(f"Answers of teacher {job.item}", [statistics])

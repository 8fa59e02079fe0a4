"""Teacher: one teacher answers every question of the `imitation` split, N times (§3.2).

Reads    data/model/<teachers.<id>.model>, data/questions/imitation; params: teachers.<id>
Writes   data/teacher/<id>: one row an answer; reports/teacher/<id>/metrics.json
Run      dvc repro teacher@<id>

The answers live in the response store; the out is their projection, so that a larger N, more questions or another
experiment pays only for what was never asked.
"""

from stages.corpora import read_questions
from stages.job import Job
from stages.job.blocks import Teacher
from stages.job.files import write_shards
from stages.responses import ANSWERS, answer_rows, answer_statistics
from stages.responses.answers import answers


def run(job: Job) -> None:
    """Writes rows of ANSWERS in the order of the questions."""
    teacher = job.block(Teacher)
    checkpoint = job.input(f"data/model/{teacher.model}")
    questions = read_questions(job.input("data/questions"), "imitation")
    with job.timed("generate"):
        given = answers(job, checkpoint, questions, teacher.sampling, teacher.responses, teacher.draw, job.name)
    rows = answer_rows([question.id for question in questions], given)
    with job.writing() as folder:
        write_shards(folder, rows, ANSWERS)
    statistics = answer_statistics(rows)
    job.write_metrics(statistics)
    job.progress.table(f"Answers of teacher {job.item}", [statistics])

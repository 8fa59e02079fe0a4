"""Report: one page about the run.

Reads    data/questions, data/evaluate, data/ril/samples, cards of the models, reports/{evaluate,ril,discriminator,pool,
         verdict}; params: all but runtime. Wall times (reports/**/timing.json) where there are any
Writes   reports/report/index.html: one file that opens from disk and asks for nothing else
Run      dvc repro report
"""

from stages.job import Job
from stages.job.files import write_text
from stages.page import benchmarks, curves, gallery, provenance, records, scores
from stages.page.render import render


def run(job: Job) -> None:
    """Writes the page. Raises MissingInput when something that it shows was not made yet."""
    models = scores.scored_models(job)
    teachers = job.params.pool.teachers
    ril, validation = records.history(job, "ril"), records.history(job, "ril", "validation.csv")
    discriminator = records.metrics(job, "discriminator")

    page = render(
        {
            "summary": scores.summary(models),
            "headline": scores.headline(models),
            # what came out
            "models": models,
            "score_plot": curves.score_plot(models),
            "kinds": scores.kinds_of(models),
            "benchmarks": benchmarks.ours(models),
            "benchmark_errors": benchmarks.errors(models),
            "columns": benchmarks.by_column(models),
            "paper": benchmarks.reference(),
            "speeds": benchmarks.speeds(job, models),
            "gallery": gallery.gallery(job, models),
            # how it came about
            "figure_3": curves.figure_3(ril, validation, teachers),
            "health": curves.health(ril, teachers),
            "groups": gallery.training_groups(job),
            "teachers": records.teachers(job),
            "exam": records.exam(job),
            "discriminator": records.discriminator_rows(discriminator, teachers),
            "logit_gap": discriminator.get("logit_gap", 0.0),
            "pretraining": curves.pretraining(records.history(job, "discriminator")),
            # where it comes from
            "times": provenance.times(job),
            "settings": provenance.settings(job),
            "versions": provenance.versions(),
            "checkpoints": provenance.checkpoints(job),
        }
    )
    write_text(job.reports / "index.html", page)
    job.progress.say("\n".join([*scores.summary(models), f"The page: {job.reports / 'index.html'}"]))

"""Report: one page about the run.

Reads    data/questions, data/evaluate, data/rollout, data/ril/samples, cards of the models, reports of all other
         stages; params: all but runtime. Where there are any: wall times
         (reports/**/timing.json), dvc.lock, and the experiments of the Git repository
Writes   reports/report/index.html: one file that opens from disk and asks for nothing else;
         reports/report/metrics.json: the run in a dozen numbers
Run      dvc repro report
"""

from stages.config.model import Model
from stages.config.pool import Pool
from stages.config.ril import Ril
from stages.job.files import write_text
from stages.job.job import Job
from stages.job.metric_names import HELD_OUT_LOGIT_GAP
from stages.page import benchmarks, checks, curves, experiments, gains, gallery, provenance, scores
from stages.page import inputs as records
from stages.page.render import render
from stages.page.summary import summary_of


def run(job: Job) -> None:
    """Writes the page and its summary. Raises MissingInput when something that it shows was not made yet."""
    models = scores.scored_models(job)
    teachers = job.block(Pool).teachers
    ril, validation = records.history(job, "ril"), records.history(job, "ril", "validation.csv")
    discriminator, exam = records.metrics(job, "discriminator"), records.exam(job)
    student, block = job.blocks(Model)["student"], job.block(Ril)

    summary = summary_of(models, ril, validation)
    job.write_metrics({"summary": summary})  # one word before them all, by which `dvc exp show --drop` tells them apart
    repository = job.repository()
    found = experiments.found(job, summary, repository)
    page = render(
        {
            "summary": scores.summary(models),
            "headline": scores.headline(models),
            "checks": checks.checks(models, ril, exam, discriminator),
            # what came out
            "models": models,
            "score_plot": curves.score_plot(models),
            "kinds": scores.kinds_of(models),
            "figure_1": gains.figure_1(models, found),
            "experiments": gains.table(found),
            "left_out": found.left_out,
            "benchmarks": benchmarks.ours(models),
            "benchmark_errors": benchmarks.errors(models),
            "columns": benchmarks.by_column(models),
            "paper": benchmarks.reference(),
            "quotes": benchmarks.quotes(models, student.hub or student.path or ""),
            "speeds": benchmarks.speeds(job, models),
            "gallery": gallery.gallery(job, models),
            # how it came about
            "figure_3": curves.figure_3(ril, validation, teachers),
            "health": curves.health(ril, teachers),
            "rewarded": gallery.training_groups(job),
            "teachers": records.teachers(job),
            "exam": exam,
            "discriminator": records.discriminator_rows(discriminator, teachers),
            "logit_gap": discriminator.get(HELD_OUT_LOGIT_GAP, 0.0),
            "pretraining": curves.pretraining(records.history(job, "discriminator")),
            # where it comes from
            "times": provenance.times(job),
            "tokens": provenance.tokens(job),
            "loop_tokens": provenance.loop_tokens(ril, teachers, block.questions_per_step * block.group),
            "settings": provenance.settings(job),
            "versions": provenance.versions(),
            "checkpoints": provenance.checkpoints(job),
            "recorded": provenance.recorded(repository.outs),
            "code": repository.code,
            "accepted": provenance.accepted_changes(job),
        }
    )
    write_text(job.reports / "index.html", page)
    job.progress.say("\n".join([*scores.summary(models), f"The page: {job.reports / 'index.html'}"]))

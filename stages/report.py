"""Report: renders one page about the run.

Reads    data/questions, data/evaluate, data/rollout, data/ril/samples, cards of the models, the student's processor,
         reports of all other stages; params: all except runtime. If present: wall times
         (reports/**/timing.json), dvc.lock, and the experiments of the Git repository
Writes   reports/report/index.html: one self-contained file;
         reports/report/metrics.json: a summary of about twelve metrics
Run      dvc repro report
"""

from stages.config.model import Model
from stages.config.pool import Pool
from stages.config.ril import Ril
from stages.job.files import write_text
from stages.job.job import Job
from stages.job.metric_names import HELD_OUT_LOGIT_GAP, LOSS
from stages.page import (
    benchmarks,
    checks,
    comparison,
    curves,
    evaluated_models,
    gains,
    gallery,
    provenance,
    seen_questions,
)
from stages.page import inputs as records
from stages.page.render import render_page
from stages.page.summary import make_summary


def run(job: Job) -> None:
    """Writes the page and its summary. Raises MissingInput when an input of the page does not exist."""
    models = evaluated_models.read_models(job)
    teachers = job.block(Pool).teachers
    ril, validation = records.read_history(job, "ril"), records.read_history(job, "ril", "validation.csv")
    discriminator, exam = records.read_metrics(job, "discriminator"), records.read_exam_scores(job)
    losses = {stage: records.read_history(job, stage).get(LOSS) for stage in ("warm_start", "discriminator")}
    student, block = job.blocks(Model)["student"], job.block(Ril)

    summary = make_summary(models, ril, validation)
    job.write_metrics({"summary": summary})  # a common prefix that `dvc exp show --drop` can match
    repository = job.repository()
    found = comparison.find_experiments(job, summary, repository)
    page = render_page(
        {
            "summary": evaluated_models.summarise(models),
            "headline": evaluated_models.pick_headline(models),
            "checks": checks.collect_checks(models, ril, exam, discriminator, losses),
            # results
            "models": models,
            "score_plot": curves.plot_scores(models),
            "kinds": evaluated_models.tabulate_kinds(models),
            "figure_1": gains.plot_figure_1(models, found),
            "experiments": gains.tabulate_gains(found),
            "left_out": found.left_out,
            "benchmarks": benchmarks.tabulate_benchmarks(models),
            "benchmark_errors": benchmarks.list_errors(models),
            "columns": benchmarks.tabulate_columns(models),
            "paper": benchmarks.tabulate_paper(),
            "quotes": benchmarks.find_paper_rows(models, student.hub or student.path or ""),
            "speeds": benchmarks.tabulate_speeds(job, models),
            "gallery": gallery.make_gallery(job, models),
            # training
            "seen": seen_questions.show_training_questions(job),
            "figure_3": curves.plot_figure_3(ril, validation, teachers),
            "health": curves.plot_health(ril, teachers),
            "rewarded": gallery.list_training_groups(job),
            "selection": records.read_metrics(job, "selection"),
            "teachers": records.tabulate_teachers(job),
            "exam": exam,
            "discriminator": records.tabulate_discriminator(discriminator, teachers),
            "logit_gap": discriminator.get(HELD_OUT_LOGIT_GAP, 0.0),
            "pretraining": curves.plot_pretraining(records.read_history(job, "discriminator")),
            # provenance
            "times": provenance.tabulate_times(job),
            "plans": provenance.tabulate_plans(job),
            "tokens": provenance.tabulate_tokens(job),
            "loop_tokens": provenance.count_loop_tokens(ril, teachers, block.questions_per_step * block.group),
            "settings": provenance.format_settings(job),
            "versions": provenance.list_versions(),
            "checkpoints": provenance.list_checkpoints(job),
            "recorded": provenance.list_recorded_outs(repository.outs),
            "code": repository.code,
            "accepted": provenance.read_accepted_changes(job),
        }
    )
    write_text(job.reports / "index.html", page)
    job.progress.say("\n".join([*evaluated_models.summarise(models), f"The page: {job.reports / 'index.html'}"]))

"""Which curves the page shows."""

import math
from collections.abc import Sequence

from stages.page.plots import Bar, Line, Plot, curves, dots
from stages.page.records import History
from stages.page.scores import Scored

STUDENT = "student"


def score_plot(models: Sequence[Scored]) -> Plot:
    """Accuracy of all models with standard errors, and with exchanged images."""
    series = {"ril": 0, "warm_start": 0, "base": 0, "teacher": 1, "other": 2}
    bars = [Bar(model.title, model.accuracy, model.standard_error, model.shuffled, series[model.role]) for model in models]
    hollow = " A hollow dot is the same model with exchanged images." if any(bar.hollow is not None for bar in bars) else ""
    return dots("Right answers", f"Share of right answers with ± 1 standard error.{hollow}", bars)


def figure_3(found: History, validation: History, teachers: Sequence[str]) -> list[Plot]:
    """The paper's Figure 3 for this run: similarity reward, answer reward, validation."""
    similarity = by_source(found, "rewards/{}/similarity", teachers)
    answer = by_source(found, "rewards/{}/answer", teachers)
    scores = [Line("validation", validation.steps, validation.columns["validation"], 0, smooth=False, dots=True)]
    return [
        curves("Similarity reward", "Share of answers that pass for a teacher's.", similarity, percent=True),
        curves("Answer reward", "Share of answers that the judge calls right.", answer, percent=True),
        curves("Validation", "Share of validation questions answered right, greedily.", scores, percent=True),
    ]


def health(found: History, teachers: Sequence[str]) -> list[Plot]:
    """Whether discriminator, advantages and update behave; a curve without any number is left out."""
    told = named(found, {"disc/acc_student": "student's texts", "disc/acc_teacher": "teachers' texts"})
    shares = {
        "frac_reward_zero_std": "equal rewards in a group",
        "frac_correct_negative_advantage": "right but pushed down",
        "completions/clipped_ratio": "cut answers",
        "judge/failed": "failed verdicts",
    }
    logits, advantages = by_source(found, "disc/{}/logit", teachers), by_source(found, "rewards/{}/advantage", teachers)
    loss, gap = named(found, {"disc/loss": "loss"}), named(found, {"disc/logit_gap": "gap"})
    divergence = named(found, {"kl/student": "student's", "kl/teacher": "teachers'"})
    norms = named(found, {"grad_norm": "student", "disc/grad_norm": "discriminator"})
    length = by_source(found, "completions/{}/mean_length", teachers)
    told_text = "Texts told apart before each update: 50 % is guessing, at 100 % the student earns nothing."
    plots = [
        ("Discriminator accuracy", told_text, told, True, 0.5),
        ("Discriminator loss", "Mean cross entropy; the line is guessing (ln 2).", loss, False, math.log(2)),
        ("Discriminator gap", "Mean logit of the student's texts less that of the teachers'.", gap, False, 0.0),
        ("Mean logit", "Below 0 a text passes for a teacher's.", logits, False, 0.0),
        ("Mean advantage", "Above 0 a source is pulled up, below 0 pushed down.", advantages, False, 0.0),
        ("KL to the warm start", "Per token, on the student's and on the teachers' answers.", divergence, False, None),
        ("Length", "Mean tokens of an answer.", length, False, None),
        ("Warning shares", "High values say that steps are wasted.", named(found, shares), True, None),
        ("Gradient norms", "Before clipping.", norms, False, None),
    ]
    return [curves(title, text, lines, percent, level) for title, text, lines, percent, level in plots if lines]


def pretraining(found: History) -> list[Plot]:
    """The discriminator's accuracy on its training texts; nothing when it took no step."""
    lines = named(found, {"accuracy": "training texts"})
    return [curves("Pre-training", "Accuracy on the texts of each step.", lines, percent=True, level=0.5)] if lines else []


def by_source(found: History, column: str, teachers: Sequence[str]) -> list[Line]:
    """A line for the student, and a dashed one for each teacher."""
    lines = []
    for series, source in enumerate([STUDENT, *sorted(teachers)]):
        values = found.get(column.format(source))
        if values is not None:
            lines.append(Line(source, found.steps, values, series, dashed=source != STUDENT))
    return lines


def named(found: History, columns: dict[str, str]) -> list[Line]:
    """A line for each of the columns that are there."""
    values = [(label, found.get(column), series) for series, (column, label) in enumerate(columns.items())]
    return [Line(label, found.steps, column, series) for label, column, series in values if column is not None]

"""The curves of the page."""

import math
from collections.abc import Sequence

from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.page.evaluated_models import EvaluatedModel
from stages.page.inputs import History
from stages.page.plots import Line, Plot, ScoreDot, plot_curves, plot_dots

CurveSpec = tuple[
    str, str, list[Line], bool, float | None
]  # title, caption, lines, whether in per cent, line for comparison


def plot_scores(models: Sequence[EvaluatedModel]) -> Plot:
    """Accuracy of all models with standard errors, and with shuffled images."""
    series = {"ril": 0, "warm_start": 0, "base": 0, "teacher": 1, "other": 2}
    bars = [
        ScoreDot(model.title, model.accuracy, model.standard_error, model.shuffled, series[model.role])
        for model in models
    ]
    hollow = " Hollow: the same model with shuffled images." if any(bar.hollow is not None for bar in bars) else ""
    return plot_dots("Accuracy", f"Share of correct answers with ± 1 standard error.{hollow}", bars)


def plot_figure_3(found: History, validation: History, teachers: Sequence[str]) -> list[Plot]:
    """The paper's Figure 3 for this run: similarity reward, answer reward, validation; those that the run has."""
    similarity = make_source_lines(found, names.SIMILARITY, teachers)
    answer = make_source_lines(found, names.ANSWER, teachers)
    scores = [
        Line(names.VALIDATION, validation.steps, validation.columns[names.VALIDATION], 0, smooth=False, dots=True)
    ]
    drawn = (
        ("Similarity reward", "Share of answers classified as a teacher's.", similarity),
        ("Answer reward", "Share of answers judged correct.", answer),
        ("Validation", "Accuracy on the validation questions with greedy decoding.", scores),
    )
    return [plot_curves(title, text, lines, percent=True) for title, text, lines in drawn if lines]


def plot_health(found: History, teachers: Sequence[str]) -> dict[str, list[Plot]]:
    """Curves of discriminator, rewards and update by topic; curves without numbers are left out."""
    groups = {
        "Discriminator": list_discriminator_curves(found, teachers),
        "Judge, rewards and groups": list_reward_curves(found, teachers),
        "Student": list_student_curves(found, teachers),
    }
    drawn = {
        title: [plot_curves(name, text, lines, share, level) for name, text, lines, share, level in wanted if lines]
        for title, wanted in groups.items()
    }
    return {title: plots for title, plots in drawn.items() if plots}


def list_discriminator_curves(found: History, teachers: Sequence[str]) -> list[CurveSpec]:
    """Its accuracy, logits, loss and entropy."""
    told = make_source_lines(found, names.DISC_ACCURACY_OF, teachers)
    sure = make_lines(found, {names.DISC_LOSS: "loss", names.DISC_ENTROPY: "entropy"})
    sure_text = "Cross entropy (dashed: chance, ln 2), and entropy of its predictions (near 0: certain)."
    logits = make_source_lines(found, names.REWARD_LOGIT, teachers)
    told_text = "Before each update; 50 % is chance, at 100 % the student gets no similarity reward."
    return [
        ("Discriminator accuracy", told_text, told, True, 0.5),
        (
            "Mean logit",
            "Below 0 a text is classified as a teacher's; the gap is the distance between the sources.",
            logits,
            False,
            0.0,
        ),
        ("Discriminator loss and entropy", sure_text, sure, False, math.log(2)),
    ]


def list_reward_curves(found: History, teachers: Sequence[str]) -> list[CurveSpec]:
    """Advantages, shares of a step without a useful signal, failed verdicts."""
    advantages = make_source_lines(found, names.ADVANTAGE, teachers)
    lost = {
        names.EQUAL_REWARDS: "equal rewards in a group",
        names.CORRECT_NEGATIVE_ADVANTAGE: "correct, negative advantage",
    }
    failed = make_source_lines(found, names.FAILED, teachers)
    return [
        (
            "Mean advantage",
            "Above 0 the update raises the probability of a source.",
            advantages,
            False,
            0.0,
        ),
        (
            "Lost signal",
            "Groups with equal rewards; correct student answers with a negative advantage.",
            make_lines(found, lost),
            True,
            None,
        ),
        ("Failed verdicts", "Share of answers without a verdict.", failed, True, None),
    ]


def list_student_curves(found: History, teachers: Sequence[str]) -> list[CurveSpec]:
    """Length, entropy, KL and optimizer statistics of the student."""
    labels = {STUDENT: "student's", TEACHERS: "teachers'"}
    divergence = make_lines(found, {names.for_source(names.KL, side): label for side, label in labels.items()})
    entropy = make_lines(found, {names.for_source(names.ENTROPY, side): label for side, label in labels.items()})
    reverse = make_pattern_lines(found, names.REVERSE_KL_OF)
    norms = make_lines(found, {names.GRAD_NORM: "student", names.DISC_GRAD_NORM: "discriminator"})
    length = make_source_lines(found, names.LENGTH, teachers)
    cut = make_source_lines(found, names.CUT, teachers)
    rate = make_lines(found, {names.LEARNING_RATE: "learning rate"})
    last = names.for_last_update(names.CLIP_RATIO)
    clipped = make_lines(found, {names.CLIP_RATIO: "clipped tokens", last: "last inner update"})
    if not any(value > 0 for line in clipped for value in line.y):
        clipped = []  # with one inner update the ratio is 1
    return [
        ("Length", "Mean tokens per answer.", length, False, None),
        ("Entropy", "Nats per token, on the student's and on the teachers' answers.", entropy, False, None),
        (
            "KL to the warm start",
            "Nats per token (k3), on the student's and on the teachers' answers.",
            divergence,
            False,
            None,
        ),
        ("Reverse KL to the teachers", "Nats per token of the student's answers (distillation).", reverse, False, 0.0),
        ("Truncated answers", "Share of answers that reached max_tokens.", cut, True, None),
        ("Gradient norms", "Before clipping.", norms, False, None),
        ("Learning rate", "Of the student.", rate, False, None),
        ("Clipped tokens", "Share of tokens whose ratio left the clip range.", clipped, True, None),
    ]


def plot_pretraining(found: History) -> list[Plot]:
    """The discriminator's accuracy on its training texts; empty if it took no step."""
    lines = make_lines(found, {names.TEXT_ACCURACY: "training texts"})
    return (
        [plot_curves("Pre-training", "Accuracy on the texts of each step.", lines, percent=True, level=0.5)]
        if lines
        else []
    )


def make_source_lines(found: History, column: str, teachers: Sequence[str]) -> list[Line]:
    """A line for the student, a dashed line for each teacher."""
    lines = []
    for series, source in enumerate([STUDENT, *sorted(teachers)]):
        values = found.get(column.format(source))
        if values is not None:
            lines.append(Line(source, found.steps, values, series, dashed=source != STUDENT))
    return lines


def make_pattern_lines(found: History, column: str) -> list[Line]:
    """A line for each source that `column`, a pattern with one `{}`, has numbers of."""
    named = {name: source for name in found.columns if (source := names.source_of(name, column)) is not None}
    return make_lines(found, named)


def make_lines(found: History, columns: dict[str, str]) -> list[Line]:
    """A line for each column that has numbers."""
    values = [(label, found.get(column), series) for series, (column, label) in enumerate(columns.items())]
    return [Line(label, found.steps, column, series) for label, column, series in values if column is not None]

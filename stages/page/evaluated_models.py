"""Scores of all evaluated models, and the summary of the run in sentences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.evaluate import Evaluation
from stages.config.pool import Pool
from stages.config.teacher import Teacher
from stages.corpora.scoring import standard_error
from stages.job.files import read_json, read_shards
from stages.job.job import Job

STUDENTS = {"data/ril/model": "ril", "data/warm_start": "warm_start", "data/model/student": "base"}
IN_WORDS = {"ril": "the RIL student", "warm_start": "the warm-started student", "base": "the base student"}
CLEAR = 2.0  # standard errors from which a difference is called significant


@dataclass(frozen=True)
class EvaluatedModel:
    """One evaluated model."""

    id: str
    title: str
    role: str  # ril, warm_start, base, teacher or other
    metrics: Mapping[str, Any]  # reports/evaluate/<id>/metrics.json
    predictions: Mapping[str, Mapping[str, Any]]  # rows of data/evaluate/<id> by question

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.metrics["accuracy"])

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy."""
        return float(self.metrics["standard_error"])

    @property
    def shuffled(self) -> float | None:
        """Accuracy with shuffled images; None if not measured."""
        return self.metrics.get("accuracy_shuffled")

    @property
    def drop(self) -> float | None:
        """Loss of accuracy with shuffled images; None if not measured."""
        return None if self.shuffled is None else self.accuracy - self.shuffled


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one model minus that of another on the same questions."""

    mean: float
    standard_error: float  # of the paired difference; infinite for a single question

    @property
    def clear(self) -> bool:
        """Whether the difference is not zero and at least `CLEAR` standard errors."""
        return self.mean != 0 and abs(self.mean) >= CLEAR * self.standard_error


def read_models(job: Job) -> list[EvaluatedModel]:
    """The models of `evaluations`, in that order.

    Raises MissingInput when one of them was not evaluated, ValueError when they were not asked the same questions.
    """
    metrics, predictions = job.input("reports/evaluate"), job.input("data/evaluate")
    found = []
    for name, evaluation in job.blocks(Evaluation).items():
        for path in (metrics / name / "metrics.json", predictions / name):
            if not path.exists():
                raise job.explain_missing(str(path.relative_to(job.root)))
        rows = {row["question_id"]: row for row in read_shards(predictions / name).to_pylist()}
        role = find_role(job, evaluation.checkpoint)
        found.append(EvaluatedModel(name, evaluation.title, role, read_json(metrics / name / "metrics.json"), rows))
    for model in found[1:]:
        if model.predictions.keys() != found[0].predictions.keys():
            raise ValueError(
                f"data/evaluate/{model.id} and data/evaluate/{found[0].id} answer different questions; "
                f"run: dvc repro evaluate@{model.id} evaluate@{found[0].id}"
            )
    return found


def find_role(job: Job, checkpoint: str) -> str:
    """What the model in this folder is in the run."""
    folder = Path(checkpoint).as_posix()
    teachers = {f"data/model/{job.blocks(Teacher)[name].model}" for name in job.block(Pool).teachers}
    return STUDENTS.get(folder, "teacher" if folder in teachers else "other")


def compare_models(of: EvaluatedModel, against: EvaluatedModel) -> PairedDifference:
    """The paired difference of two models that answered the same questions; those without a score are left out."""
    pairs = [(row["score"], against.predictions[name]["score"]) for name, row in of.predictions.items()]
    steps = [one - other for one, other in pairs if one is not None and other is not None]
    error = statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else math.inf
    return PairedDifference(statistics.fmean(steps) if steps else 0.0, error)


def find_first(models: Sequence[EvaluatedModel], role: str) -> EvaluatedModel | None:
    """The first model of this role."""
    return next((model for model in models if model.role == role), None)


def find_best_teacher(models: Sequence[EvaluatedModel]) -> EvaluatedModel | None:
    """The teacher with the highest accuracy."""
    return max((model for model in models if model.role == "teacher"), key=lambda model: model.accuracy, default=None)


def pick_headline(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """The models whose scores stand at the top: the students in their order of training, and the best teacher."""
    chosen = [*(find_first(models, role) for role in ("base", "warm_start", "ril")), find_best_teacher(models)]
    return [model for model in chosen if model is not None] or list(models[:4])


def summarise(models: Sequence[EvaluatedModel]) -> list[str]:
    """The run in a few sentences."""
    student = find_first(models, "ril")
    if student is None:
        return [
            "No entry of `evaluations` in params.yaml scores the RIL student (data/ril/model), so its gain is unknown."
        ]
    count = student.metrics["questions"]
    sentences = [
        f"The RIL student answers {format_percent(student.accuracy)} of {count:,} held-out questions correctly "
        f"(standard error {format_points(student.standard_error)})."
    ]
    for role in ("warm_start", "base"):
        other = find_first(models, role)
        if other is not None:
            sentences.append(describe_difference(compare_models(student, other), other))
    teacher = find_best_teacher(models)
    if teacher is not None:
        sentences.append(f"The best teacher ({teacher.title}) reaches {format_percent(teacher.accuracy)}.")
    if student.shuffled is not None:
        sentences.append(f"With shuffled images the RIL student reaches {format_percent(student.shuffled)}.")
    return [*sentences, "This is a single run: standard errors cover the choice of questions, not that of the seed."]


def describe_difference(found: PairedDifference, other: EvaluatedModel) -> str:
    """The difference to `other` as a sentence."""
    name, share = IN_WORDS[other.role], format_percent(other.accuracy)
    error = f"standard error of the paired difference {format_points(found.standard_error)}"
    if not found.clear:
        change = f"{format_points(found.mean, True)} points; {error}"
        return f"The difference to {name} ({share}) is not significant ({change})."
    side = "above" if found.mean > 0 else "below"
    return f"This is {format_points(abs(found.mean))} points {side} {name} ({share}; {error})."


def classify_outcomes(models: Sequence[EvaluatedModel]) -> tuple[EvaluatedModel, EvaluatedModel, dict[str, str]]:
    """The models before and after, and what became of each question: gained, lost, right or wrong (both times),
    unscored without a verdict on one of the answers.

    Before is the warm-started student, else the base, else the first model; after the RIL student, else the last model.
    """
    before = find_first(models, "warm_start") or find_first(models, "base") or models[0]
    after = find_first(models, "ril") or models[-1]
    names = {(False, True): "gained", (True, False): "lost", (True, True): "right", (False, False): "wrong"}
    became = {
        name: names.get((before.predictions[name]["correct"], row["correct"]), "unscored")
        for name, row in after.predictions.items()
    }
    return before, after, became


def tabulate_kinds(models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """One row a kind of question: how many there are, each model's share of right answers with its standard error."""
    rows = models[0].predictions.values()
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in sorted({row["kind"] for row in rows})}
    return [
        {
            "kind": kind,
            "questions": count,
            "shares": [
                {
                    "share": model.metrics["by_kind"][kind],
                    "error": standard_error(model.metrics["by_kind"][kind], count),
                }
                for model in models
            ],
        }
        for kind, count in counts.items()
    ]


def format_percent(share: float, digits: int = 1) -> str:
    """0.6314 as "63.1 %", with a space that no line breaks at."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def format_points(share: float, sign: bool = False) -> str:
    """0.0523 as "5.2" percentage points, with `sign` as "+5.2"."""
    text = f"{100 * share:{'+' if sign else ''}.1f}"
    return ("0.0" if text in ("-0.0", "+0.0") else text).replace("-", "−")

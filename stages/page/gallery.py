"""Questions shown with their images: answers of all models, and rewarded groups of the loop."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image

from stages.config.evaluate import Evaluate
from stages.config.report import Report
from stages.corpora.rows import IMITATION_SPLITS, Question, find_questions
from stages.groups.response import STUDENT
from stages.job.files import read_shards, reading_parquet
from stages.job.job import Job
from stages.page.evaluated_models import EvaluatedModel, classify_outcomes

OUTCOMES = {
    "gained": "Gained",
    "lost": "Lost",
    "right": "Correct both times",
    "wrong": "Wrong both times",
    "unscored": "No verdict",
}
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "GIF", "WEBP")
REWARDED = {
    "earned-both": "Correct, classified as a teacher's",
    "earned-right": "Correct only",
    "earned-fooled": "Classified as a teacher's only",
    "earned-neither": "Neither",
}


def make_gallery(job: Job, models: Sequence[EvaluatedModel]) -> dict[str, Any]:
    """`report.samples` questions of the scored split, as evenly as possible from the four outcomes and from all kinds.

    Raises ValueError if the questions are not those that were answered.
    """
    before, after, became = classify_outcomes(models)
    kinds = {name: row["kind"] for name, row in after.predictions.items()}
    stacks: dict[str, list[str]] = {name: [] for name in OUTCOMES}
    order = sorted(became, key=lambda name: job.seed("gallery", name))
    for question_id in alternate_kinds(order, kinds):
        stacks[became[question_id]].append(question_id)
    chosen = pick_evenly(stacks, job.block(Report).samples)
    questions = read_questions_by_id(job, [job.block(Evaluate).split], chosen, f"evaluate@{after.id}")
    return {
        "before": before,
        "after": after,
        "counts": {
            name: (title, len(stacks[name])) for name, title in OUTCOMES.items() if stacks[name] or name != "unscored"
        },
        "questions": [
            {**describe_question(questions[name]), "outcome": became[name], "answers": list_answers(models, name)}
            for name in chosen
        ],
    }


def read_questions_by_id(job: Job, splits: Sequence[str], names: Collection[str], maker: str) -> Mapping[str, Question]:
    """The questions of some splits with these ids; images of other questions are not read.

    Raises ValueError if one is missing: then `maker` has to run again.
    """
    found = find_questions(job.input("data/questions"), splits, names)
    for name in names:
        if name not in found:
            raise ValueError(f"no question {name!r} in data/questions/{splits[0]}; run: dvc repro {maker}")
    return found


def alternate_kinds(order: Iterable[str], kinds: Mapping[str, str]) -> list[str]:
    """The questions with kinds alternating; `order` decides within a kind."""
    turns: dict[str, int] = defaultdict(int)
    places = []
    for question_id in order:
        kind = kinds[question_id]
        places.append((turns[kind], question_id))
        turns[kind] += 1
    return [question_id for _, question_id in sorted(places, key=lambda place: place[0])]


def pick_evenly(stacks: Mapping[str, Sequence[str]], wanted: int) -> list[str]:
    """`wanted` entries (all if there are fewer), taken from the stacks in turn; those of a stack stay together."""
    taken = dict.fromkeys(stacks, 0)
    while sum(taken.values()) < wanted and any(taken[name] < len(stack) for name, stack in stacks.items()):
        for name, stack in stacks.items():
            if taken[name] < len(stack) and sum(taken.values()) < wanted:
                taken[name] += 1
    return [question_id for name, stack in stacks.items() for question_id in stack[: taken[name]]]


def list_answers(models: Sequence[EvaluatedModel], question_id: str) -> list[dict[str, Any]]:
    """Every model's answer to one question."""
    rows = [(model, model.predictions[question_id]) for model in models]
    return [
        {
            "title": model.title,
            "role": model.role,
            "text": row["response"],
            "correct": row["correct"],
            "cut": row["finish_reason"] == "length",
            "refused": row["finish_reason"] == "refused",
            "tokens": row["completion_tokens"],
        }
        for model, row in rows
    ]


def describe_question(question: Question) -> dict[str, Any]:
    """The fields of a question that the page shows."""
    return {
        "id": question.id,
        "kind": question.kind,
        "text": question.text,
        "reference": question.answer,
        "images": [make_data_uri(image) for image in question.images],
    }


def make_data_uri(image: bytes) -> Markup:
    """The image as a `data:` URL: its own bytes if browsers know the format, else re-encoded as PNG."""
    with Image.open(io.BytesIO(image)) as picture:
        kind = picture.format or ""
        if kind not in SHOWN_BY_BROWSERS:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
            image, kind = buffer.getvalue(), "PNG"
    text = f"data:{Image.MIME[kind]};base64,{base64.b64encode(image).decode()}"
    return Markup(text)  # nosec B704: the type is Pillow's, the rest base64


def list_training_groups(job: Job) -> dict[str, Any]:
    """Rewarded groups of the first and last steps of the loop: source, answer, D's score, verdict and reward.

    Each group also has an answer of the student before the loop (`rollout`), without reward.
    Raises ValueError if the groups are not about questions that RIL can learn from.
    """
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_shards(job.input("data/ril/samples")).to_pylist():
        groups[row["step"], row["question_id"]].append(
            {**row, "student": None if row["logit"] is None else sigmoid(row["logit"]), "kind": classify_reward(row)}
        )
    kept = pick_first_and_last(sorted(groups), job.block(Report).samples // 2)
    questions = read_questions_by_id(job, IMITATION_SPLITS, [name for _, name in kept], "ril")
    before = read_earlier_answers(job, {name for _, name in kept})
    shown_groups = [
        {
            "step": step,
            **describe_question(questions[name]),
            "before": before.get(name),
            "rows": groups[step, name],
            "outcomes": sorted({row["kind"] for row in groups[step, name]} - {""}),
        }
        for step, name in kept
    ]
    counts = {
        name: (title, sum(name in group["outcomes"] for group in shown_groups)) for name, title in REWARDED.items()
    }
    return {"counts": counts, "groups": shown_groups}


def classify_reward(row: Mapping[str, Any]) -> str:
    """The rewards of a student's row as a key of REWARDED; "" for a teacher's row, or without a discriminator."""
    if row["source"] != STUDENT or row["logit"] is None or math.isnan(row["logit"]):
        return ""
    names = {(True, True): "both", (True, False): "right", (False, True): "fooled", (False, False): "neither"}
    return f"earned-{names[bool(row['answer']), row['logit'] < 0]}"


def pick_first_and_last(keys: Sequence[tuple[int, str]], wanted: int) -> list[tuple[int, str]]:
    """About `wanted` of the sorted (step, question): whole steps, from both ends of the run inwards, in order."""
    steps = list(dict.fromkeys(step for step, _ in keys))
    inwards = dict.fromkeys(step for pair in zip(steps, reversed(steps), strict=True) for step in pair)
    chosen: set[int] = set()
    for step in inwards:
        if sum(key[0] in chosen for key in keys) >= wanted:
            break
        chosen.add(step)
    return [key for key in keys if key[0] in chosen]


def read_earlier_answers(job: Job, questions: Collection[str]) -> dict[str, str]:
    """The first stored answer of the warm-started student to each of these questions."""
    found: dict[str, str] = {}
    for file in sorted(job.input("data/rollout").glob("*.parquet")):
        wanted = [("question_id", "in", sorted(questions))]
        with reading_parquet(file):
            rows = pq.read_table(file, columns=["question_id", "response"], filters=wanted).to_pylist()
        for row in rows:
            found.setdefault(row["question_id"], row["response"])
    return found


def sigmoid(logit: float) -> float:
    """The discriminator's probability that the student wrote a text."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

"""Questions that are shown with their images: answers of all models, and rewarded groups of the training."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from stages.corpora import Question, read_questions
from stages.job import Job
from stages.job.files import read_shards
from stages.page.scores import Scored, outcomes

OUTCOMES = {"gained": "Gained", "lost": "Lost", "right": "Right both times", "wrong": "Wrong both times"}
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "GIF", "WEBP")
GROUPS_PER_STEP = 2  # rewarded groups that are shown of the first and of the last step


def gallery(job: Job, models: Sequence[Scored]) -> dict[str, Any]:
    """`report.samples` questions of the scored split, as evenly as can be from the four outcomes and from all kinds.

    Raises ValueError when the questions are not those that were answered.
    """
    split = job.params.evaluate.split
    questions = {question.id: question for question in read_questions(job.input("data/questions"), split)}
    before, after, became = outcomes(models)
    unknown = sorted(became.keys() - questions.keys())
    if unknown:
        raise ValueError(f"no question {unknown[0]!r} in data/questions/{split}; run: dvc repro evaluate@{after.id}")
    stacks: dict[str, list[str]] = {name: [] for name in OUTCOMES}
    order = sorted(became, key=lambda name: job.seed("gallery", name))
    for question_id in across_kinds(order, questions):
        stacks[became[question_id]].append(question_id)
    chosen = evenly(stacks, job.params.report.samples)
    return {
        "before": before,
        "after": after,
        "counts": {name: (title, len(stacks[name])) for name, title in OUTCOMES.items()},
        "questions": [{**shown(questions[name]), "outcome": became[name], "answers": said(models, name)} for name in chosen],
    }


def across_kinds(order: Iterable[str], questions: Mapping[str, Question]) -> list[str]:
    """The questions so that each kind takes its turn; `order` decides within a kind."""
    turns: dict[str, int] = defaultdict(int)
    places = []
    for question_id in order:
        kind = questions[question_id].kind
        places.append((turns[kind], question_id))
        turns[kind] += 1
    return [question_id for _, question_id in sorted(places, key=lambda place: place[0])]


def evenly(stacks: Mapping[str, Sequence[str]], wanted: int) -> list[str]:
    """`wanted` entries (all, when there are fewer), one from each stack in turn; those of a stack stay together."""
    taken = dict.fromkeys(stacks, 0)
    while sum(taken.values()) < wanted and any(taken[name] < len(stack) for name, stack in stacks.items()):
        for name, stack in stacks.items():
            if taken[name] < len(stack) and sum(taken.values()) < wanted:
                taken[name] += 1
    return [question_id for name, stack in stacks.items() for question_id in stack[: taken[name]]]


def said(models: Sequence[Scored], question_id: str) -> list[dict[str, Any]]:
    """Every model's answer to one question."""
    rows = [(model, model.predictions[question_id]) for model in models]
    return [
        {
            "title": model.title,
            "role": model.role,
            "text": row["response"],
            "correct": row["correct"],
            "cut": row["finish_reason"] == "length",
            "tokens": row["completion_tokens"],
        }
        for model, row in rows
    ]


def shown(question: Question) -> dict[str, Any]:
    """What the page shows of a question."""
    return {
        "id": question.id,
        "kind": question.kind,
        "text": question.text,
        "reference": question.answer,
        "images": [data_uri(image) for image in question.images],
    }


def data_uri(image: bytes) -> str:
    """The image as a `data:` address: its own bytes where browsers know the format, else the same picture as PNG."""
    with Image.open(io.BytesIO(image)) as picture:
        kind = picture.format or ""
        if kind not in SHOWN_BY_BROWSERS:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
            image, kind = buffer.getvalue(), "PNG"
    return f"data:{Image.MIME[kind]};base64,{base64.b64encode(image).decode()}"


def training_groups(job: Job) -> list[dict[str, Any]]:
    """Rewarded groups of the first and of the last step that kept some: what was answered, and what it earned."""
    rows = read_shards(job.input("data/ril/samples")).to_pylist()
    steps = sorted({row["step"] for row in rows})
    wanted = [row for row in rows if row["step"] in (steps[0], steps[-1])] if steps else []
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in wanted:
        groups[row["step"], row["question_id"]].append({**row, "student": sigmoid(row["logit"])})
    questions = {question.id: question for question in read_questions(job.input("data/questions"), "imitation")}
    unknown = sorted(name for _, name in groups if name not in questions)
    if unknown:
        raise ValueError(f"no question {unknown[0]!r} in data/questions/imitation; run: dvc repro ril")
    kept = [key for step in dict.fromkeys(s for s, _ in groups) for key in [k for k in groups if k[0] == step][:GROUPS_PER_STEP]]
    return [{"step": step, **shown(questions[name]), "rows": groups[step, name]} for step, name in kept]


def sigmoid(logit: float) -> float:
    """The discriminator's probability that the student wrote a text."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

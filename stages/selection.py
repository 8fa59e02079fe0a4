"""Selection: chooses the questions that RIL learns from (App. C: log-probability sampling and overlong filtering).

Reads    data/questions, data/model/<selection.teacher>, the student `selection.student`; params: selection
Writes   data/selection/kept: split and id of each kept question; data/selection/scores: one row per question with its
         lengths, log probabilities, score and the reason why it was dropped (no rows if nothing is selected);
         reports/selection/{metrics.json,rejects.jsonl}
Run      dvc repro selection

The score of a question is log p(reference) under the teacher less that under the student (DeltaLoss, arXiv 2412.04468):
near 0 where both find it equally likely, negative where the reference misleads. Log probabilities are kept in the
response store, so that another `top` or bound scores only what was not scored before. By default nothing is selected.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.config.selection import Selection
from stages.corpora.kept_questions import write_kept_questions
from stages.corpora.rows import QuestionFolder
from stages.corpora.source import UnusableData
from stages.job.files import ROWS_PER_SHARD, write_parquet
from stages.job.job import Job
from stages.job.rejects import Reject, write_rejects
from stages.responses.reference_scores import ReferenceScores, score_references
from stages.vlm.checkpoint import open_verified

DECIMALS = 3  # of a score: on CPU, batches change log probabilities by 1e-5, which decides no rank
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
KEPT, LONG_PROMPT, LONG_REFERENCE, LONG_FOR_STUDENT, NOT_SCORED, LOW_SCORE = range(6)
REASONS = ("", "prompt too long", "reference too long", "longer than the student's context", "not scored", "low score")
SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("prompt_tokens", pa.int32()),  # of the student, images included
        ("reference_tokens", pa.int32()),  # of the student, end-of-turn token included
        ("teacher_log_prob", pa.float64()),  # of the whole reference; null if it was not scored
        ("student_log_prob", pa.float64()),
        ("score", pa.float64()),
        ("dropped", pa.string()),  # one of REASONS; null for a kept question
    ]
)


@dataclass(frozen=True)
class Candidates:
    """The questions of the split; every array has one value per question, in the order of the split."""

    ids: list[str]
    sources: list[str]
    kinds: list[str]
    prompt_tokens: np.ndarray
    reference_tokens: np.ndarray
    teacher: np.ndarray  # log probability of the reference, nan if it was not scored
    student: np.ndarray
    scores: np.ndarray
    dropped: np.ndarray  # index in REASONS

    @classmethod
    def from_questions(cls, questions: QuestionFolder) -> "Candidates":
        """Returns the questions of a split without lengths and scores, all of them kept."""
        rows = list(questions.iter_columns(["id", "source", "kind"]))
        sources, kinds = ([sys.intern(row[key] or "") for row in rows] for key in ("source", "kind"))
        count = len(rows)
        return cls(
            ids=[row["id"] for row in rows],
            sources=sources,
            kinds=kinds,
            prompt_tokens=np.zeros(count, np.int32),
            reference_tokens=np.zeros(count, np.int32),
            teacher=np.full(count, np.nan),
            student=np.full(count, np.nan),
            scores=np.full(count, np.nan),
            dropped=np.zeros(count, np.int8),
        )

    @property
    def kept(self) -> np.ndarray:
        """Places of the questions that were not dropped, ascending."""
        return np.flatnonzero(self.dropped == KEPT)

    def list_groups(self, within: str) -> list[str]:
        """Returns the group of each question, of those that `within` ranks together."""
        return {"all": [""] * len(self.ids), "kind": self.kinds, "source": self.sources}[within]


def run(job: Job) -> None:
    """Writes the kept ids, the scores and the metrics.

    Raises UnusableData when no question is left, TooManyRejects when more than max_reject_share of the questions that
    are not too long cannot be scored.
    """
    block = job.block(Selection)
    folder = job.input("data/questions")
    questions = QuestionFolder(folder, block.split)
    found = Candidates.from_questions(questions)
    rejects = []
    if selects(block):
        drop_overlong(job, block, questions, found)
        if 0 < block.top < len(found.kept):
            rejects = drop_low_scores(job, block, found)
    if not len(found.kept):
        counts = ", ".join(f"{count} {reason}" for reason, count in count_dropped(found).items())
        raise UnusableData(f"selection keeps none of {len(found.ids)} questions ({counts}); raise its bounds")
    with job.writing() as out:
        write_kept_questions(out / "kept", block.split, (found.ids[place] for place in found.kept))
        write_scores(out / "scores", found if selects(block) else None)
    write_rejects(job.reports / "rejects.jsonl", rejects)
    job.write_metrics(describe_selection(block, found))
    job.progress.show_table("Questions of RIL", list(count_kinds(found)))


def selects(block: Selection) -> bool:
    """Whether any question can be dropped."""
    return bool(block.top or block.max_prompt_tokens or block.max_reference_tokens)


def drop_overlong(job: Job, block: Selection, questions: QuestionFolder, found: Candidates) -> None:
    """Counts the student's tokens of prompts and references, and drops questions above the bounds.

    Images are not decoded. A question must fit the student's context together with its reference and the one token that
    an engine generates after it.
    """
    from stages.vlm.reader import load_reader  # local import: takes seconds, and by default nothing is selected

    checkpoint = open_verified(job.input(block.student), job.store)
    reader = load_reader(checkpoint)
    with job.measure_time("lengths"):
        for place, question in enumerate(job.progress.track(iter(questions), "lengths", len(questions))):
            found.prompt_tokens[place] = reader.count_prompt_tokens(question.messages, question.images)
            found.reference_tokens[place] = len(reader.chat.encode_response(question.answer))
    too_long = found.prompt_tokens + found.reference_tokens + 1 > checkpoint.context_tokens
    found.dropped[too_long] = LONG_FOR_STUDENT
    for tokens, bound, reason in (
        (found.reference_tokens, block.max_reference_tokens, LONG_REFERENCE),
        (found.prompt_tokens, block.max_prompt_tokens, LONG_PROMPT),
    ):
        if bound:
            found.dropped[tokens > bound] = reason


def drop_low_scores(job: Job, block: Selection, found: Candidates) -> list[Reject]:
    """Scores the questions that are left and drops all but the `top` best; returns those without a score.

    Those are dropped as well.
    """
    places = found.kept
    left = QuestionFolder(job.input("data/questions"), block.split, places)
    models = {"teacher": f"data/model/{block.teacher}", "student": block.student}
    scored: dict[str, ReferenceScores] = {}
    for role, folder in models.items():
        title = f"selection: {role}"
        with job.measure_time(f"score {role}"):
            scored[role] = score_references(job, job.input(folder), left, title, block.max_reject_share)
    teacher, student = scored["teacher"], scored["student"]
    found.teacher[places], found.student[places] = teacher.log_probs, student.log_probs
    found.scores[places] = subtract_log_probs(teacher, student, block.per)
    found.dropped[places[np.isnan(found.scores[places])]] = NOT_SCORED
    ranked = found.kept
    groups = found.list_groups(block.within)
    best = pick_best(found.scores[ranked], [groups[place] for place in ranked], block.top)
    found.dropped[ranked[~best]] = LOW_SCORE
    return [*teacher.rejects, *student.rejects]


def subtract_log_probs(teacher: ReferenceScores, student: ReferenceScores, per: str) -> np.ndarray:
    """Returns log p under the teacher less log p under the student, float64; nan where one of them is missing.

    With `per` "token", each is divided by the number of tokens that its model has for the reference.
    """
    parts = [
        one.log_probs / np.maximum(one.tokens, 1) if per == "token" else one.log_probs for one in (teacher, student)
    ]
    return np.round(parts[0] - parts[1], DECIMALS)


def pick_best(scores: np.ndarray, groups: Sequence[str], top: int) -> np.ndarray:
    """Returns which questions are among the `top` best, as a mask; of equal scores the earlier question is better.

    Each group keeps the same share of its questions, rounded by largest remainders; of equal ones the first group in
    alphabetical order.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    shares = {group: top * len(places) / len(scores) for group, places in members.items()}
    counts = {group: min(int(share), len(members[group])) for group, share in shares.items()}
    rest = min(top, len(scores)) - sum(counts.values())
    for group in sorted(shares, key=lambda group: (counts[group] - shares[group], group))[:rest]:
        counts[group] += 1
    mask = np.zeros(len(scores), bool)
    for group, places in members.items():
        order = np.argsort(-scores[places], kind="stable")[: counts[group]]
        mask[np.array(places)[order]] = True
    return mask


def write_scores(folder: Path, found: Candidates | None) -> None:
    """Writes rows of SCORES as shards; no rows for None."""
    if found is None:
        write_parquet(folder / "part-00000.parquet", SCORES.empty_table())
        return
    reasons = pa.array([None, *REASONS[1:]], pa.string())
    for part, start in enumerate(range(0, len(found.ids), ROWS_PER_SHARD)):
        rows = slice(start, start + ROWS_PER_SHARD)
        numbers = [pa.array(values[rows], from_pandas=True) for values in (found.teacher, found.student, found.scores)]
        columns = [
            *(pa.array(texts[rows], pa.string()) for texts in (found.ids, found.sources, found.kinds)),
            *(pa.array(tokens[rows]) for tokens in (found.prompt_tokens, found.reference_tokens)),
            *numbers,
            reasons.take(pa.array(found.dropped[rows])),
        ]
        write_parquet(folder / f"part-{part:05d}.parquet", pa.table(columns, schema=SCORES))


def count_dropped(found: Candidates) -> dict[str, int]:
    """Returns how many questions were dropped for each reason; reasons without any are left out."""
    counts = np.bincount(found.dropped, minlength=len(REASONS)).tolist()
    return {reason: count for reason, count in zip(REASONS, counts, strict=True) if reason and count}


def count_kinds(found: Candidates) -> Iterator[dict[str, Any]]:
    """Yields the counts of each kind of question, with the mean scores of its candidates and of its kept questions."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(found.kinds):
        places[kind].append(place)
    for kind in sorted(places):
        every = np.array(places[kind])
        kept = every[found.dropped[every] == KEPT]
        yield {
            "kind": kind,
            "candidates": len(every),
            "kept": len(kept),
            "mean_score": _average(found.scores[every]),
            "mean_score_kept": _average(found.scores[kept]),
        }


def _average(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), DECIMALS) if len(known) else None


def describe_selection(block: Selection, found: Candidates) -> dict[str, Any]:
    """Returns counts, reasons and the distribution of the scores; without wall times."""
    known = found.scores[~np.isnan(found.scores)]
    kept = found.scores[found.kept]
    return {
        "split": block.split,
        "candidates": len(found.ids),
        "kept": len(found.kept),
        "dropped": count_dropped(found),
        "kinds": {row.pop("kind"): row for row in count_kinds(found)},
        "scores": {
            "scored": len(known),
            "mean": _average(found.scores),
            "positive_share": round(float((known > 0).mean()), 4),
            "lowest_kept": round(float(kept.min()), DECIMALS),
            "quantiles": {f"{at:.2f}": round(float(np.quantile(known, at)), DECIMALS) for at in QUANTILES},
        }
        if len(known)
        else None,
    }

"""Questions that a stage cannot use, with reasons: lines of reports/<stage>/rejects.jsonl, limited to a share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from stages.job.files import write_text


class Reason(NamedTuple):
    """Why a request has no answer."""

    kind: Literal["refused", "failed"]
    text: str


@dataclass(frozen=True)
class Reject:
    """Consecutive samples of one question that have no answer: a line of rejects.jsonl."""

    question_id: str
    sample: int
    answers: int
    kind: str
    reason: str


class TooManyRejects(ValueError):
    """More answers are missing than the parameters allow; the message names the first reason and the remedy."""


def check_share(title: str, lacking: int, wanted: int, max_share: float, question_id: str, reason: Reason) -> None:
    """Raises TooManyRejects if more than `max_share` of the answers are missing; the question is an example."""
    if lacking > max_share * wanted:
        raise TooManyRejects(
            f"{title}: {lacking} of {wanted} answers are missing, above max_reject_share = {max_share:g}; for "
            "example question "
            f"{question_id} {reason.kind}: {reason.text}. What was answered is stored: correct or drop such "
            "questions, or raise "
            "max_reject_share, and run again"
        )


def write_rejects(file: Path, rejects: Sequence[Reject]) -> None:
    """Writes one JSON line per reject, ordered by question and sample; also writes an empty file."""
    write_text(file, "".join(json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects))


def make_too_long_rejects(
    title: str, reasons: Mapping[str, str], answers: int, wanted: int, max_share: float
) -> list[Reject]:
    """Returns rejects for questions (by id) that exceed the context, each missing all its `answers`.

    Raises TooManyRejects if they are more than `max_share` of the `wanted` questions, or all of them.
    """
    if len(reasons) > max_share * wanted or (reasons and len(reasons) == wanted):
        name, reason = next(iter(reasons.items()))
        raise TooManyRejects(
            f"{title}: {len(reasons)} of {wanted} questions exceed the context, above max_reject_share = "
            f"{max_share:g}; "
            f"for example question {name}: {reason}. Shorten or drop them, raise the model's context_tokens, or "
            "the share"
        )
    return [Reject(name, 0, answers, "refused", reason) for name, reason in reasons.items()]

"""Answers that can't be had: the engine refused the request for what it is, or failed on the way.

A refusal (a prompt longer than the context, an image that can't be read) is remembered beside the segments: it starts no engine
of its own again, and is asked again when one runs anyway. A failure is asked again by the next run.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from stages.job.files import write_text

FOLDER = "refused"


class Reason(NamedTuple):
    """Why a request has no answer."""

    kind: Literal["refused", "failed"]
    text: str


@dataclass(frozen=True)
class Reject:
    """Neighbouring samples of one question that have no answer: a line of rejects.jsonl."""

    question_id: str
    sample: int
    answers: int
    kind: str
    reason: str


class TooManyRejects(ValueError):
    """More answers are lacking than the parameters allow; the message names the first reason and the remedy."""


def check_share(title: str, lacking: int, wanted: int, max_share: float, question_id: str, reason: Reason) -> None:
    """Raises TooManyRejects when more than `max_share` of the answers are lacking; the question is an example."""
    if lacking > max_share * wanted:
        raise TooManyRejects(
            f"{title}: {lacking} of {wanted} answers are lacking, above max_reject_share = {max_share:g}; for example question "
            f"{question_id} {reason.kind}: {reason.text}. What was answered is stored: correct or drop such questions, or raise "
            "max_reject_share, and run again"
        )


def write_rejects(file: Path, rejects: Sequence[Reject]) -> None:
    """Writes one JSON line a reject, in the order of questions and samples; the file is there also when it is empty."""
    write_text(file, "".join(json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects))


def remember(folder: Path, reasons: Mapping[str, Reason]) -> None:
    """Keeps the refusals among `reasons`, by request key, beside the segments in `folder`."""
    rows = ({"request_key": key, "reason": reason.text} for key, reason in reasons.items() if reason.kind == "refused")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        write_text(folder / FOLDER / f"{secrets.token_hex(8)}.jsonl", "".join(lines))


def remembered(folder: Path) -> dict[str, Reason]:
    """Refusals by request key."""
    rows = (json.loads(line) for file in sorted((folder / FOLDER).glob("*.jsonl")) for line in file.read_text().splitlines())
    return {row["request_key"]: Reason("refused", row["reason"]) for row in rows}

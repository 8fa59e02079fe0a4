"""One response of a group and its source."""

from dataclasses import dataclass

STUDENT = "student"
TEACHERS = "teacher"  # all teachers together, in metrics by source


@dataclass(frozen=True)
class Response:
    """One response of a group, before rewards are computed."""

    source: str  # STUDENT, or the teacher's id
    text: str
    token_ids: tuple[int, ...]  # in the student's tokenizer
    finish_reason: str  # "stop", or "length" if truncated
    verdict: int | None  # the judge's 0 or 1; None is a failed verdict, never counted as 0
    sampled_log_probs: tuple[float, ...] | None = (
        None  # log p of token_ids as sampled by the engine; None for teacher rows (trap T15)
    )

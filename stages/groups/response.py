"""One response of a group, and who wrote it."""

from dataclasses import dataclass

STUDENT = "student"
TEACHERS = "teacher"  # all of them together, where something is logged by source


@dataclass(frozen=True)
class Response:
    """One response of a group while it is being rewarded."""

    source: str  # STUDENT, or the teacher's id
    text: str
    token_ids: tuple[int, ...]  # in the student's tokenizer
    finish_reason: str  # "stop", or "length" when it was cut
    verdict: int | None  # the judge's 0 or 1; None is a failed verdict, never a zero
    sampled_log_probs: tuple[float, ...] | None = None  # of token_ids in the engine; teacher rows have none (trap T15)

"""One response of a group and its source."""

from dataclasses import dataclass

from stages.groups.repeats import ends_in_copy

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
    rewards: tuple[float | None, ...] = ()  # of the functions of ril.rewards in their order; None is a failed one
    # log p of token_ids under each entry of ril.distillation; () if one of them lacks a token, None where none is asked
    teacher_log_probs: tuple[tuple[float, ...], ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the text is a complete answer (`is_whole_text`)."""
        return is_whole_text(self.text, self.finish_reason)


def is_whole_text(text: str, finish_reason: str) -> bool:
    """Returns whether a text ended by itself, is not empty, and does not end in copies of one block."""
    return finish_reason == "stop" and bool(text.strip()) and not ends_in_copy(text.strip())

"""Rewards and advantages of a group: R = 1[D < 0.5] + verdict; A = R - mean of all 2G (§3.3, Eq. 2).

The convention is fixed here once: the discriminator's logit z is for "the student wrote it" (student 1, teacher 0), so text that
passes for a teacher's has z < 0 and earns the similarity reward; z = 0 earns nothing (strict inequality).
"""

from collections.abc import Sequence
from dataclasses import dataclass

STUDENT = "student"


@dataclass(frozen=True)
class Row:
    """One response of a group while it is being rewarded."""

    source: str  # STUDENT, or the teacher's id
    text: str
    token_ids: tuple[int, ...]  # in the student's tokenizer
    finish_reason: str  # "stop", or "length" when it was cut
    verdict: int | None  # the judge's 0 or 1; None is a failed verdict, never a zero


@dataclass(frozen=True)
class Rewarded:
    """A row that stays in its group, with its rewards and its advantage."""

    row: Row
    logit: float
    similarity: int
    answer: int
    advantage: float

    @property
    def reward(self) -> int:
        """R, in {0, 1, 2}."""
        return self.similarity + self.answer


def similarity_reward(logit: float) -> int:
    """1[D < 0.5], which is 1[z < 0]."""
    return int(logit < 0.0)


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the group; no standard deviation (Dr.GRPO)."""
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def rewarded_group(rows: Sequence[Row], logits: Sequence[float]) -> list[Rewarded]:
    """The rows that have a verdict, rewarded against the mean of just these.

    A failed verdict takes its row out of the group and out of the baseline (trap T28). A truncated answer has answer
    reward 0, as in Dr.GRPO's code; the paper is silent.
    """
    kept = [(row, logit) for row, logit in zip(rows, logits, strict=True) if row.verdict is not None]
    similarity = [similarity_reward(logit) for _, logit in kept]
    answer = [row.verdict if row.finish_reason == "stop" and row.verdict else 0 for row, _ in kept]
    advantages = group_advantages([s + a for s, a in zip(similarity, answer, strict=True)])
    return [
        Rewarded(row, logit, s, a, advantage)
        for (row, logit), s, a, advantage in zip(kept, similarity, answer, advantages, strict=True)
    ]

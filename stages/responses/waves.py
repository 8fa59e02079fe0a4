"""Waves: groups of requests that are sent to the engine together, and their outcomes."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from stages.engines.engine import Answer, Engine, Request, RequestError
from stages.job.bounded import replace_surrogates
from stages.job.rejects import Reason
from stages.responses.requested import MissingRange, PromptLike

WAVE_ANSWERS = 1024  # answers per call of the engine and per segment: the most that a crash can lose


@dataclass
class Wave:
    """Requests of one call of the engine, with their outcomes."""

    gaps: list[MissingRange]
    prompts: list[PromptLike]
    began: float = field(default_factory=time.monotonic)
    finished: dict[int, list[Answer]] = field(default_factory=dict)  # by index in the wave
    reasons: dict[int, Reason] = field(default_factory=dict)
    lacking: int = 0

    def add(self, index: int, outcome: list[Answer] | str) -> list[Answer]:
        """Adds the answers to one request, or the reason of its refusal; returns the answers."""
        if isinstance(outcome, str):
            self.reasons[index] = Reason("refused", replace_surrogates(outcome))
            self.lacking += self.gaps[index].answers
            return []
        self.finished[index] = [answer for answer in outcome if not answer.failed]
        if gone := [answer for answer in outcome if answer.failed]:
            self.reasons[index] = Reason("failed", replace_surrogates(gone[0].finish_reason))
            self.lacking += len(gone)
        return outcome

    def seconds_an_answer(self) -> float:
        """Returns the wall time so far divided by the number of finished answers."""
        return (time.monotonic() - self.began) / max(sum(map(len, self.finished.values())), 1)


def split_into_waves(gaps: Iterable[MissingRange]) -> Iterator[list[MissingRange]]:
    """Splits the work at fixed positions. A killed run lacks whole waves, so its next run makes equal batches."""
    wave: list[MissingRange] = []
    count = 0
    for gap in gaps:
        wave.append(gap)
        count += gap.answers
        if count >= WAVE_ANSWERS:
            yield wave
            wave, count = [], 0
    if wave:
        yield wave


def generate_outcomes(
    engine: Engine, requests: Sequence[Request], asked: list[int]
) -> Iterator[tuple[int, list[Answer] | str]]:
    """Yields (index in `requests`, its answers or the reason of its refusal) for each index in `asked`.

    An engine refuses a call as a whole; the call is bisected until the refused request is isolated.
    """
    left = list(asked)
    try:
        for place, written in engine.generate([requests[index] for index in asked]):
            left.remove(asked[place])
            yield asked[place], written
    except RequestError as error:
        if len(left) == 1:
            yield left[0], str(error)
            return
        half = (len(left) + 1) // 2
        yield from generate_outcomes(engine, requests, left[:half])
        yield from generate_outcomes(engine, requests, left[half:])

"""The window of generation: requests that were sent to the engine and whose outcomes are not in the store yet.

Requests are sent in a fixed order, each when the engine has room for it, and outcomes are stored in the order in which
they come, SEGMENT_ANSWERS at a time. So the engine's batches stay full, memory is that of the window, and a killed run
loses at most the window. The next run sends the missing requests in the same order with the same seeds.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import chain

from stages.engines.engine import Answer, Outcome, Request
from stages.job.bounded import replace_surrogates
from stages.job.rejects import Reason
from stages.responses.requested import MissingRange, PromptLike
from stages.responses.space import UnusableStore

SEGMENT_ANSWERS = 1024  # finished answers that are written together: the most of them that a crash can lose


@dataclass
class FinishedRequest:
    """A request whose outcome is known: its answers, without those that failed."""

    gap: MissingRange
    prompt: PromptLike
    answers: list[Answer]
    reason: Reason | None = None  # why answers are missing


@dataclass
class _Space:
    """Space on disk that is kept for some requests until all of them are stored."""

    held: ExitStack
    requests: int

    def release(self, requests: int) -> None:
        """Counts requests that need no space any more; frees it after the last one."""
        self.requests -= requests
        if not self.requests:
            self.held.close()


@dataclass
class Window:
    """The open requests, the space kept for their answers, and the outcomes that are not stored."""

    gaps: Iterable[MissingRange]
    open_prompt: Callable[[int], PromptLike]
    reserve: Callable[[list[MissingRange]], AbstractContextManager[None]]  # keeps space for the answers, or raises
    admit: Callable[[int], int] = lambda answers: answers  # how many of so many answers may be asked for now
    held_back: list[MissingRange] = field(default_factory=list)  # what it has not admitted, and all after that
    began: float = field(default_factory=time.monotonic)  # when outcomes were last stored
    finished: dict[int, FinishedRequest] = field(default_factory=dict)  # by number of the request
    lacking: int = 0  # answers that were refused or failed, so far
    end: Exception | None = None  # why no more requests are sent; to be raised once the open ones are stored
    _answers: int = 0  # that the finished requests ask for
    _open: dict[int, tuple[MissingRange, PromptLike]] = field(default_factory=dict)
    _spaces: dict[int, _Space] = field(default_factory=dict)  # by number of the request

    def iter_requests(self, make: Callable[[PromptLike, MissingRange], Request]) -> Iterator[Request]:
        """Yields the requests in order. The space for their answers is kept before the first of a portion is sent.

        Ends early at `end`, when there is no space, which becomes `end`, or when answers are not admitted: what is left
        is then in `held_back`.
        """
        number = 0
        portions = split_into_portions(self.gaps)
        for portion in portions:
            held = ExitStack()
            try:
                held.enter_context(self.reserve(portion))
            except UnusableStore as error:
                self.end = error
                return
            space = _Space(held, len(portion))
            for place, whole in enumerate(portion):
                if self.end is not None:
                    return
                gap = whole._replace(answers=self.admit(whole.answers))
                if gap.answers < whole.answers:
                    rest = whole._replace(first=whole.first + gap.answers, answers=whole.answers - gap.answers)
                    self.held_back = [rest, *portion[place + 1 :], *chain.from_iterable(portions)]
                    space.release(len(portion) - place - (gap.answers > 0))
                if not gap.answers:
                    return
                prompt = self.open_prompt(gap.prompt)
                self._open[number], self._spaces[number] = (gap, prompt), space
                number += 1
                yield make(prompt, gap)
                if self.held_back:
                    return

    def add(self, number: int, outcome: Outcome) -> list[Answer]:
        """Adds the outcome of a request; returns its answers, also those that failed."""
        gap, prompt = self._open.pop(number)
        self._answers += gap.answers
        if isinstance(outcome, str):
            self.finished[number] = FinishedRequest(gap, prompt, [], Reason("refused", replace_surrogates(outcome)))
            return []
        gone = [answer for answer in outcome if answer.failed]
        reason = Reason("failed", replace_surrogates(gone[0].finish_reason)) if gone else None
        kept = [answer for answer in outcome if not answer.failed]
        self.finished[number] = FinishedRequest(gap, prompt, kept, reason)
        return outcome

    @property
    def is_full(self) -> bool:
        """Whether enough outcomes have come to be stored."""
        return self._answers >= SEGMENT_ANSWERS

    def seconds_an_answer(self) -> float:
        """Returns the wall time since outcomes were last stored, divided by the number of answers since."""
        return (time.monotonic() - self.began) / max(sum(len(one.answers) for one in self.finished.values()), 1)

    def list_finished(self) -> list[FinishedRequest]:
        """Returns the outcomes that are not stored, in the order of the requests."""
        return [self.finished[number] for number in sorted(self.finished)]

    def clear(self) -> None:
        """Forgets the outcomes, which are stored now, and frees the space of portions that are stored as a whole."""
        for number in self.finished:
            self._spaces.pop(number).release(1)
        self.finished, self._answers, self.began = {}, 0, time.monotonic()

    def close(self) -> None:
        """Frees all space that is still kept."""
        for space in self._spaces.values():
            space.held.close()


def split_into_portions(gaps: Iterable[MissingRange]) -> Iterator[list[MissingRange]]:
    """Splits the work at fixed positions, into portions of SEGMENT_ANSWERS answers."""
    portion: list[MissingRange] = []
    count = 0
    for gap in gaps:
        portion.append(gap)
        count += gap.answers
        if count >= SEGMENT_ANSWERS:
            yield portion
            portion, count = [], 0
    if portion:
        yield portion

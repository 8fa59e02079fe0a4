"""Requests that are sent to a server one by one, while others are answered and this process does other work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from stages.engines.calls import Call, FailedCall
from stages.engines.calls import CallStream as CallStream
from stages.engines.engine import Answer, Outcome, Request, RequestError

RequestPart = tuple[int, Request]  # first sample of the request that the call covers, and what is sent


@dataclass
class _OpenRequest:
    """A request of which some calls are not done."""

    number: int
    answers: int
    found: list[Answer] = field(default_factory=list)
    refused: bool = False


class ServerStream:
    """The requests of one stream and their outcomes. What is done is forgotten: images are held while they are sent."""

    def __init__(
        self,
        calls: CallStream[list[Answer]],
        call: Callable[[Request], Call[list[Answer]]],
        parts: Callable[[Request], Sequence[RequestPart]] = lambda request: [(0, request)],
    ) -> None:
        """`call` makes the call of a request; `parts` splits a request that cannot be sent as a whole."""
        self._calls, self._call, self._parts_of = calls, call, parts
        self._count = 0
        self._sent: dict[int, tuple[_OpenRequest, int, int]] = {}  # of each open call: first sample, number of answers

    def put(self, request: Request) -> None:
        """Sends `request` as soon as the server has capacity; returns immediately."""
        whole = _OpenRequest(self._count, request.n)
        self._count += 1
        for first, part in self._parts_of(request):
            self._sent[self._calls.count] = whole, first, part.n
            self._calls.put(self._call(part))

    def iter_outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its answers in order) as requests finish, until all are done.

        Requests may be put in while it yields. A request whose attempts all failed gives failed answers that state the
        reason. A request that the server refuses gives the reason instead of answers. Raises EngineError when the
        remaining requests cannot be answered.
        """
        for number, outcome in self._calls.iter_outcomes():
            whole, first, answers = self._sent.pop(number)
            if isinstance(outcome, RequestError):
                if not whole.refused:
                    whole.refused = True
                    yield whole.number, str(outcome)
                continue
            if isinstance(outcome, FailedCall):
                outcome = [Answer(sample, "", (), outcome.reason, 0, 0) for sample in range(answers)]
            whole.found += [replace(answer, index=first + answer.index) for answer in outcome]
            if len(whole.found) == whole.answers and not whole.refused:
                yield whole.number, sorted(whole.found, key=lambda answer: answer.index)


def send_in_window(stream: ServerStream, requests: Iterable[Request], window: int) -> Iterator[tuple[int, Outcome]]:
    """Yields the outcomes of `requests` as `Engine.iter_outcomes` does; at most `window` requests are open."""
    waiting = iter(requests)
    for request in islice(waiting, window):
        stream.put(request)
    for found in stream.iter_outcomes():
        for request in islice(waiting, 1):
            stream.put(request)
        yield found


def require_answers(outcomes: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, list[Answer]]]:
    """Yields the answers among `outcomes`; raises the first refusal as RequestError after all are done."""
    refusals: list[str] = []
    for index, outcome in outcomes:
        if isinstance(outcome, str):
            refusals.append(outcome)  # the others are already being generated
        else:
            yield index, outcome
    if refusals:
        raise RequestError(refusals[0])

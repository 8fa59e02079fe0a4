"""Requests that are sent to a server one by one, while others are answered and this process does other work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stages.engines.calls import Call, FailedCall
from stages.engines.calls import CallStream as CallStream
from stages.engines.engine import Answer, Request, RequestError

RequestPart = tuple[int, Request]  # first sample of the request that the call covers, and what is sent


class ServerStream:
    """The requests of one stream and their outcomes."""

    def __init__(
        self,
        calls: CallStream[list[Answer]],
        call: Callable[[Request], Call[list[Answer]]],
        parts: Callable[[Request], Sequence[RequestPart]] = lambda request: [(0, request)],
    ) -> None:
        """`call` makes the call of a request; `parts` splits a request that cannot be sent as a whole."""
        self._calls, self._call, self._parts_of = calls, call, parts
        self._requests: list[Request] = []
        self._places: list[tuple[int, int, Request]] = []  # for each call: its request, its first sample, what was sent

    def put(self, request: Request) -> None:
        """Sends `request` as soon as the server has capacity; returns immediately."""
        for first, part in self._parts_of(request):
            self._places.append((len(self._requests), first, part))
            self._calls.put(self._call(part))
        self._requests.append(request)

    def iter_outcomes(self) -> Iterator[tuple[int, list[Answer] | str]]:
        """Yields (number of the request, its answers in order) as requests finish, until all are done.

        A request whose attempts all failed gives failed answers that state the reason. A request that the server
        refuses gives the reason instead of answers. Raises EngineError when the remaining requests cannot be answered.
        """
        gathered: dict[int, list[Answer]] = {}
        refused: set[int] = set()
        for number, outcome in self._calls.iter_outcomes():
            whole, first, part = self._places[number]
            if isinstance(outcome, RequestError):
                if whole not in refused:
                    yield whole, str(outcome)
                refused.add(whole)
                continue
            if isinstance(outcome, FailedCall):
                outcome = [Answer(sample, "", (), outcome.reason, 0, 0) for sample in range(part.n)]
            found = gathered.setdefault(whole, [])
            found += [replace(answer, index=first + answer.index) for answer in outcome]
            if len(found) == self._requests[whole].n and whole not in refused:
                yield whole, sorted(gathered.pop(whole), key=lambda answer: answer.index)


def collect_answers(stream: ServerStream, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
    """Yields the answers to `requests` as `Engine.generate` does; raises the first refusal after all are done."""
    for request in requests:
        stream.put(request)
    refusals: list[str] = []
    for index, outcome in stream.iter_outcomes():
        if isinstance(outcome, str):
            refusals.append(outcome)  # the others are already being generated
        else:
            yield index, outcome
    if refusals:
        raise RequestError(refusals[0])

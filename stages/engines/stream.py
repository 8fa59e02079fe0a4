"""Requests that go to a server one after another, while others are answered and this process does something else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stages.engines.calls import Call, FailedCall
from stages.engines.calls import CallStream as CallStream
from stages.engines.engine import Answer, Request, RequestError

RequestPart = tuple[int, Request]  # the first sample of a request that it is about, and what is sent


class ServerStream:
    """The requests of one stream, and what becomes of them."""

    def __init__(
        self,
        calls: CallStream[list[Answer]],
        call: Callable[[Request], Call[list[Answer]]],
        parts: Callable[[Request], Sequence[RequestPart]] = lambda request: [(0, request)],
    ) -> None:
        """`call` makes of a request what is sent, `parts` cuts up one that does not go as a whole."""
        self._calls, self._call, self._parts_of = calls, call, parts
        self._requests: list[Request] = []
        self._places: list[tuple[int, int, Request]] = []  # of each call: its request, its first sample, what was sent

    def put(self, request: Request) -> None:
        """Sends `request` as soon as the server may be asked; returns at once."""
        for first, part in self._parts_of(request):
            self._places.append((len(self._requests), first, part))
            self._calls.put(self._call(part))
        self._requests.append(request)

    def iter_outcomes(self) -> Iterator[tuple[int, list[Answer] | str]]:
        """Yields (number of the request, its answers in order) as requests finish, until all that were put in are
        through.

        A request that failed again and again comes as failed answers that say why; for one that the server refuses the
        reason comes in place of answers. Raises EngineError when nothing more can be had.
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
    """The answers to all of `requests`, as `Engine.generate` yields them; the first refusal is raised when all are
    through.
    """
    for request in requests:
        stream.put(request)
    refusals: list[str] = []
    for index, outcome in stream.iter_outcomes():
        if isinstance(outcome, str):
            refusals.append(outcome)  # the others are being paid for already
        else:
            yield index, outcome
    if refusals:
        raise RequestError(refusals[0])

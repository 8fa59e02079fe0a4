"""The reward functions of `ril.rewards` for the answers of a step: called in processes while the loop goes on.

A function that gives no number for an answer has failed: it raised, took too long, returned NaN or another type, left a
process running, ended its process, or returned None. A failure is never 0: its part of the advantage is
(stages/policy/rewards.py). Failures are counted by reward and said once a kind.
"""

import base64
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.config.own_rewards import Reward
from stages.corpora.rows import Question
from stages.groups.response import Response
from stages.job.cores import count_cores
from stages.job.failure import Failure
from stages.reward_functions.cache import ValueCache, hash_call, hash_function_code
from stages.reward_functions.process import CallOutcome, WorkerEnded, WorkerProcess

MOST_PROCESSES = 16
SAVE_SECONDS = 60.0  # between writes of the cache
BY_FUNCTION = "returned None"
ResponsePlace = tuple[int, int]  # number of the question in its step, number of the answer
Track = Callable[[Iterable[Any], str], Iterable[Any]]
Values = tuple[float | None, ...]  # one for each function, in the order of ril.rewards; None: failed


@dataclass
class Calls:
    """What became of the calls of one function in a step."""

    count: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    examples: dict[str, str] = field(default_factory=dict)  # name of a question by reason
    printed: int = 0
    print_example: str = ""

    def add(self, name: str, outcome: CallOutcome) -> None:
        """Counts one outcome for question `name`."""
        self.count += 1
        if outcome.printed:
            self.printed += 1
            self.print_example = self.print_example or outcome.printed
        reason = outcome.failure or (BY_FUNCTION if outcome.value is None else None)
        if reason:
            self.failed[reason] += 1
            self.examples.setdefault(reason, name)


class RewardFunctions:
    """The functions of `ril.rewards`, in processes of this machine."""

    def __init__(self, rewards: Sequence[Reward], root: Path, code: str, store: Path | None) -> None:
        """Starts the first process, so that a function that cannot be loaded ends the stage here.

        `code` is ril.reward_code, relative to `root`; without a store nothing is cached. Raises Failure.
        """
        self.rewards = rewards
        self._caches = [
            ValueCache(store, hash_function_code(root, code, one)) if store and one.file else None for one in rewards
        ]
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._processes = [WorkerProcess(root, rewards) for _ in range(min(count_cores(), MOST_PROCESSES))]
        self._threads = ThreadPoolExecutor(len(self._processes), thread_name_prefix="rewards")
        self._asked: dict[tuple[ResponsePlace, int], tuple[str, str, Future[CallOutcome]]] = {}
        self._said: set[tuple[str, str]] = set()
        self._saved = time.monotonic()
        for process in self._processes:
            self._idle.put(process)
        try:
            # a thread of the pool, since the kernel ends a process with the thread that has started it
            self._taken = self._threads.submit(self._processes[0].start).result()
        except WorkerEnded as error:
            self.close()
            raise Failure(f"ril.rewards: {error}") from error

    @property
    def used(self) -> bool:
        """Whether any answer was added since the last `collect`."""
        return bool(self._asked)

    def put(self, number: int, question: Question, rows: Sequence[Response]) -> None:
        """Adds the answers to question `number` of the step; they are computed at once, on all cores."""
        for place, row in enumerate(rows):
            request = {
                "question": question.text,
                "reference": question.answer,
                "answer": row.text,
                "finish_reason": row.finish_reason,
            }
            call = hash_call(request, question.image_sha256)
            for index, taken in enumerate(self._taken):
                images = [base64.b64encode(image).decode() for image in question.images] if "images" in taken else []
                found = self._submit(index, call, {**request, "images": images})
                self._asked[(number, place), index] = (call, question.id, found)

    def collect(
        self, title: str, say: Callable[[str], None], track: Track | None = None
    ) -> tuple[dict[ResponsePlace, Values], list[Calls]]:
        """Waits and returns the values of each answer, and what became of the calls of each function.

        Raises Failure when the share of failed calls of a function is above its `max_failed_share`; `title` is used in
        messages, `track` shows progress.
        """
        values: dict[ResponsePlace, list[float | None]] = {}
        calls = [Calls() for _ in self.rewards]
        asked = list(self._asked.items())
        for ((number, place), index), (call, name, future) in track(asked, title) if track else asked:
            outcome = future.result()
            calls[index].add(name, outcome)
            values.setdefault((number, place), []).append(outcome.value)
            cache = self._caches[index]
            if cache is not None and outcome.failure is None:
                cache.add(call, outcome.value)
        self._asked = {}
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self._save()
        for reward, one in zip(self.rewards, calls, strict=True):
            self._report(reward, one, title, say)
        return {place: tuple(found) for place, found in values.items()}, calls

    def close(self) -> None:
        """Ends all processes and writes the cache."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.close()
        self._save()

    def _submit(self, index: int, call: str, request: Mapping[str, Any]) -> "Future[CallOutcome]":
        cache = self._caches[index]
        if cache is not None and call in cache:
            found: Future[CallOutcome] = Future()
            found.set_result(CallOutcome(cache[call]))
            return found
        return self._threads.submit(self._call, index, request)

    def _call(self, index: int, request: Mapping[str, Any]) -> CallOutcome:
        process = self._idle.get()
        try:
            return process.call(index, request)
        finally:
            self._idle.put(process)

    def _save(self) -> None:
        self._saved = time.monotonic()
        for cache in self._caches:
            if cache is not None:
                cache.save()

    def _report(self, reward: Reward, calls: Calls, title: str, say: Callable[[str], None]) -> None:
        place = f"{title}: reward {reward.title!r} ({reward.use})"
        failed = calls.failed.total()
        told = "; ".join(
            f"{count} {reason}, such as on question {calls.examples[reason]}"
            for reason, count in calls.failed.most_common(3)
        )
        if calls.count and failed / calls.count > reward.max_failed_share:
            raise Failure(
                f"{place}: {failed} of {calls.count} calls failed, above max_failed_share = "
                f"{reward.max_failed_share:g}: {told}. Try it on stored answers: ril rewards try {reward.use}"
            )
        if any((reward.title, reason) not in self._said for reason in calls.failed):
            self._said |= {(reward.title, reason) for reason in calls.failed}
            say(f"warning: {place}: {failed} of {calls.count} calls failed and train nobody: {told}")
        if calls.printed and (reward.title, "") not in self._said:
            self._said.add((reward.title, ""))
            say(f"warning: {place}: {calls.printed} of {calls.count} calls printed, such as: {calls.print_example}")

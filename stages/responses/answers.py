"""Generates answers through the store: stored answers are reused, missing ones are generated and stored meanwhile."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from stages.config.engines import OpenAi
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.corpora.rows import split_target
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Answer, Engine, Request, RequestError, StartOptions
from stages.engines.start import find_label, start_engine
from stages.job.job import Job
from stages.job.rejects import Reason, Reject, check_share
from stages.responses.about import make_about, read_model_name, write_about
from stages.responses.key import GenerationSpec, derive_answer_key, derive_request_seed, make_request_content
from stages.responses.refusals import read_refusals, write_refusals
from stages.responses.requested import MissingRange, PromptLike, RequestedAnswers, find_missing_ranges
from stages.responses.score_text import format_log_probs
from stages.responses.sets import find_served_model, read_descriptions
from stages.responses.space import reserve_space
from stages.responses.store import Store, StoredAnswer
from stages.responses.template import read_template
from stages.responses.window import SEGMENT_ANSWERS, FinishedRequest, Window, split_into_portions
from stages.vlm.checkpoint import Checkpoint, open_verified

BYTES_PER_TOKEN = 8  # 4 of its id, about 4 of its text
BYTES_PER_SCORE = 16  # of a character of a given answer, at most one token: its id, about 10 of its log probability
BYTES_PER_ROW = 512  # keys, names, counts
StartEngine = Callable[[Checkpoint, Runtime, StartOptions], Engine]
Converted = TypeVar("Converted")


@dataclass(frozen=True)
class Generation:
    """The model that answers, and its settings."""

    checkpoint: Path  # folder with the model's card
    sampling: Sampling
    samples: int = 1  # answers per prompt
    draw: int = 0  # another number requests a fresh set of answers
    watch: Callable[[Sequence[StoredAnswer]], None] | None = None  # gets answers once they are stored; may raise


def fetch_answers(
    job: Job,
    generation: Generation,
    prompts: Sequence[PromptLike],
    title: str,
    start: StartEngine = start_engine,
    max_reject_share: float | None = None,
) -> list[list[StoredAnswer]]:
    """Returns the model's answers to each prompt, in the order of `prompts` and of their samples.

    Only answers missing from the store are generated; if none are missing, no engine starts. With `max_reject_share`,
    up to that share of the answers may be missing, and the lists of their prompts are shorter. Without it, all answers
    are required: raises RequestError for a prompt that the model cannot take, RuntimeError when answers failed.
    Finished answers are stored before an error is raised.
    """
    return list(fetch_each_answer(job, generation, prompts, title, start, max_reject_share))


def fetch_each_answer(
    job: Job,
    generation: Generation,
    prompts: Sequence[PromptLike],
    title: str,
    start: StartEngine = start_engine,
    max_reject_share: float | None = None,
) -> Iterator[list[StoredAnswer]]:
    """Returns the result of `fetch_answers` as an iterator, which reads about SEGMENT_ANSWERS answers at a time.

    All missing answers are generated before it returns. `prompts` may be read from files on access.
    """
    asking = AnswerSession.open(job, generation, title, start, max_reject_share)
    wanted = RequestedAnswers.from_prompts(asking.asked, prompts, generation.samples)
    store = Store(asking.folder, job.progress.say)
    asking.complete(store, wanted, prompts)
    return asking.iter_answers(store, wanted, prompts)


def fetch_converted(
    job: Job,
    generation: Generation,
    prompts: Sequence[PromptLike],
    convert: Callable[[list[StoredAnswer]], Converted],
    max_reject_share: float,
    start: StartEngine = start_engine,
) -> tuple[list[Converted], list[Reject]]:
    """Returns what `convert` makes of the answers to each prompt, and the missing answers with their reasons.

    Memory holds the results and about SEGMENT_ANSWERS answers. `prompts` may be read from files on access.
    """
    asking = AnswerSession.open(job, generation, job.name, start, max_reject_share)
    wanted = RequestedAnswers.from_prompts(asking.asked, prompts, generation.samples)
    store = Store(asking.folder, job.progress.say)
    asking.complete(store, wanted, prompts)
    found = [convert(answers) for answers in asking.iter_answers(store, wanted, prompts)]
    return found, asking.make_rejects(wanted, wanted.find_stored(store))


def read_stored_answers(job: Job, generation: Generation, prompts: Sequence[PromptLike]) -> list[list[StoredAnswer]]:
    """Returns the answers that are in the store, in the form of `fetch_answers`; no engine starts."""
    asking = AnswerSession.open(job, generation, job.name)
    wanted = RequestedAnswers.from_prompts(asking.asked, prompts, generation.samples)
    return asking.read(Store(asking.folder, job.progress.say), wanted)


def _read_block(store: Store, wanted: RequestedAnswers, block: range) -> list[list[StoredAnswer]]:
    requests = [wanted.request_key(prompt) for prompt in block]
    found = store.fetch((request, sample) for request in requests for sample in range(wanted.n))
    keys = [[derive_answer_key(request, sample) for sample in range(wanted.n)] for request in requests]
    return [[found[key] for key in row if key in found] for row in keys]


@dataclass
class AnswerCost:
    """Counts of stored and generated answers of a run, for progress lines and timing.json."""

    wanted: int = 0
    stored: int = 0
    generated: int = 0
    prompt_tokens: int = 0  # of sent requests; each prompt counts once
    completion_tokens: int = 0
    start_seconds: float = 0.0
    generate_seconds: float = 0.0


@dataclass
class AnswerSession:
    """One model with one set of generation settings, used by one stage."""

    job: Job
    checkpoint: Checkpoint
    asked: GenerationSpec
    title: str
    start: StartEngine
    max_reject_share: float | None
    watch: Callable[[Sequence[StoredAnswer]], None] | None = None
    cost: AnswerCost = field(default_factory=AnswerCost)
    reasons: dict[str, Reason] = field(default_factory=dict)  # why answers are missing, by request key
    said: set[str] = field(default_factory=set)  # faults
    borrows: bool = False  # the engine that `start` gives is another's and stays open

    @classmethod
    def open(
        cls,
        job: Job,
        generation: Generation,
        title: str,
        start: StartEngine = start_engine,
        max_reject_share: float | None = None,
    ) -> "AnswerSession":
        """Opens the model's card. Raises ValueError for several greedy answers, because all would be equal."""
        if generation.sampling.temperature == 0 and generation.samples > 1:
            raise ValueError(
                f"{title}: temperature 0 writes the same answer {generation.samples} times; set responses: 1, or "
                "raise it"
            )
        checkpoint = open_verified(generation.checkpoint, job.store)
        asked = make_generation_spec(checkpoint, generation.sampling, generation.draw, job.store)
        return cls(job, checkpoint, asked, title, start, max_reject_share, generation.watch)

    @property
    def folder(self) -> Path:
        """The folder of this set of answers in the store."""
        return self.job.store / "responses" / self.asked.slug

    def complete(self, store: Store, wanted: RequestedAnswers, prompts: Sequence[PromptLike]) -> np.ndarray:
        """Generates the answers missing from `store` and returns a mask of the stored answers.

        Raises the same errors as `fetch_answers`.
        """
        stored = wanted.find_stored(store)
        known, _ = read_refusals(self.folder)
        self._say_faults()
        self.reasons = dict(known) if self.max_reject_share is not None else {}
        gaps = list(wanted.find_missing(stored, last=known))
        fresh = sum(gap.answers for gap in gaps)
        there = int(stored.sum())
        self.cost.wanted, self.cost.stored = there + fresh, there - self.cost.generated
        self.job.progress.say(
            f"{self.title}: {there + fresh} answers wanted, {there} in the store "
            f"({there / max(there + fresh, 1):.0%}), "
            f"{fresh} to generate"
        )
        if any(wanted.request_key(gap.prompt) not in self.reasons for gap in gaps):
            self._generate_all(store, wanted, prompts, gaps, there)
            stored = wanted.find_stored(store)
        self._check(wanted, stored)
        return stored

    def read(self, store: Store, wanted: RequestedAnswers) -> list[list[StoredAnswer]]:
        """Returns the stored answers to each prompt, in order."""
        return [answers for block in wanted.iter_blocks() for answers in _read_block(store, wanted, block)]

    def iter_answers(
        self, store: Store, wanted: RequestedAnswers, prompts: Sequence[PromptLike]
    ) -> Iterator[list[StoredAnswer]]:
        """Yields the stored answers to each prompt in order, and reports the cost at the end.

        Answers of a segment that turns out to be damaged are generated again.
        """
        for block in wanted.iter_blocks(SEGMENT_ANSWERS):
            while True:
                damaged = len(store.damaged)
                found = _read_block(store, wanted, block)
                if len(store.damaged) == damaged:  # else a segment had readable keys but damaged texts
                    break
                self.complete(store, wanted, prompts)
            yield from found
        self.report(self.job)

    def _say_faults(self) -> None:
        """Names the files beside the segments that are passed over, once."""
        for fault in map(str, read_descriptions(self.folder)[1]):
            if fault not in self.said:
                self.said.add(fault)
                self.job.progress.say(fault)

    def _generate_all(
        self,
        store: Store,
        wanted: RequestedAnswers,
        prompts: Sequence[PromptLike],
        gaps: list[MissingRange],
        there: int,
    ) -> None:
        with self._reserve(prompts, next(split_into_portions(gaps))):
            write_about(self.folder, make_about(self.checkpoint, self.asked))
        if self._asks_endpoint():
            self.job.spending.check(sum(gap.answers for gap in gaps))
        began = time.monotonic()
        served = find_served_model(store, self.checkpoint)
        lacking = [(wanted.ids[gap.prompt], gap.answers) for gap in gaps]
        engine = self.start(
            self.checkpoint,
            self.job.block(Runtime),
            StartOptions(
                self.job.store / "logs",
                lacking,
                self.job.progress.say,
                served=served,
                stage=self.job.stage,
                spending=self.job.spending,
            ),
        )
        try:
            ready = time.monotonic()
            self.cost.start_seconds += ready - began
            total = there + sum(gap.answers for gap in gaps)
            for _ in self.job.progress.track(
                self._generate(engine, store, wanted, prompts, gaps), self.title, total, there
            ):
                pass
            self.cost.generate_seconds += time.monotonic() - ready
        finally:
            if not self.borrows:
                engine.close()

    def _asks_endpoint(self) -> bool:
        engine = self.job.block(Runtime).find_engine(self.job.stage, find_label(self.checkpoint))
        return isinstance(engine, OpenAi)

    def _generate(
        self,
        engine: Engine,
        store: Store,
        wanted: RequestedAnswers,
        prompts: Sequence[PromptLike],
        gaps: Sequence[MissingRange],
    ) -> Iterator[Answer]:
        """Yields answers as they finish; SEGMENT_ANSWERS of them at a time are on disk before more are yielded.

        The space for answers is reserved before their requests are sent, so that none is paid for that can't be stored.
        """
        while gaps:
            window = Window(gaps, prompts.__getitem__, partial(self._reserve, prompts), self._make_admission(engine))
            yield from self._generate_window(engine, store, wanted, window)
            if gaps := window.held_back:
                self._continue_paying(gaps)

    def _make_admission(self, engine: Engine) -> Callable[[int], int]:
        """Returns what says how many answers may be asked for: the budget of an endpoint; else all may."""
        if not isinstance(engine, EndpointEngine):
            return lambda answers: answers
        return partial(engine.admit, most_tokens=self.asked.sampling.max_tokens)

    def _continue_paying(self, gaps: Sequence[MissingRange]) -> None:
        """Raises BudgetReached with what is missing, or frees what was kept for requests that have failed."""
        self.job.spending.settle()
        self.job.spending.check(sum(gap.answers for gap in gaps))

    def _generate_window(
        self, engine: Engine, store: Store, wanted: RequestedAnswers, window: Window
    ) -> Iterator[Answer]:
        """Yields the answers to the requests of `window` as they finish."""
        try:
            for number, outcome in engine.iter_outcomes(window.iter_requests(partial(self._make_request, wanted))):
                yield from window.add(number, outcome)
                if window.is_full:
                    self._store_finished(engine, store, wanted, window)
        finally:  # also after an error of the engine: keep the answers that it finished
            self._store_finished(engine, store, wanted, window)
            window.close()
        if window.end is not None:
            raise window.end

    def _store_finished(self, engine: Engine, store: Store, wanted: RequestedAnswers, window: Window) -> None:
        """Writes the outcomes of the window to disk, as one segment; ends the window when they are useless."""
        finished, seconds = window.list_finished(), window.seconds_an_answer()
        rows = [row for one in finished for row in self._make_rows(engine, wanted, one, seconds)]
        store.append(rows)
        reasons = {wanted.request_key(one.gap.prompt): one.reason for one in finished if one.reason is not None}
        write_refusals(self.folder, reasons)
        window.clear()
        self.reasons |= reasons
        self.cost.generated += len(rows)
        self.cost.prompt_tokens += sum(one.answers[0].prompt_tokens for one in finished if one.answers)
        self.cost.completion_tokens += sum(row.completion_tokens for row in rows)
        window.lacking += sum(one.gap.answers - len(one.answers) for one in finished)
        try:
            if self.watch is not None and rows:
                self.watch(rows)
            for one in finished:
                if one.reason is not None and self.max_reject_share is not None:
                    total = len(wanted) * wanted.n
                    check_share(self.title, window.lacking, total, self.max_reject_share, one.prompt.id, one.reason)
        except Exception as error:  # raised once the open requests, which are paid for, are answered and stored
            window.end = window.end or error

    def _reserve(self, prompts: Sequence[PromptLike], gaps: Sequence[MissingRange]) -> AbstractContextManager[None]:
        """Keeps space on disk for the answers of `gaps` until the block ends."""
        return reserve_space(self.folder, self._estimate_bytes(prompts, gaps))

    def _estimate_bytes(self, prompts: Sequence[PromptLike], gaps: Sequence[MissingRange]) -> int:
        """Returns an upper bound of the bytes of answers on disk: tokens, their texts, the request; not compressed."""
        answer = self.asked.sampling.max_tokens * BYTES_PER_TOKEN + BYTES_PER_ROW
        total = 0
        for gap in gaps:
            messages = prompts[gap.prompt].messages
            total += gap.answers * answer + sum(2 * len(message["content"]) for message in messages)
            total += BYTES_PER_SCORE * len(split_target(messages)[1] or "")
        return total

    def _make_request(self, wanted: RequestedAnswers, prompt: PromptLike, gap: MissingRange) -> Request:
        seed = derive_request_seed(wanted.request_key(gap.prompt)) + gap.first
        return Request(prompt.id, prompt.messages, prompt.images, self.asked.sampling, gap.answers, seed)

    def _make_rows(
        self, engine: Engine, wanted: RequestedAnswers, finished: FinishedRequest, seconds: float
    ) -> list[StoredAnswer]:
        name, revision = read_model_name(self.checkpoint)
        gap, prompt = finished.gap, finished.prompt
        key = wanted.request_key(gap.prompt)
        content = json.dumps(make_request_content(prompt.messages, prompt.image_sha256), ensure_ascii=False)
        scored = split_target(prompt.messages)[1] is not None  # the answer was given, not generated
        return [
            StoredAnswer(
                key=derive_answer_key(key, gap.first + answer.index),
                request_key=key,
                sample=gap.first + answer.index,
                question_id=prompt.id,
                text=_make_stored_text(answer, scored),
                token_ids=answer.token_ids,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                engine=engine.name,
                engine_version=engine.version,
                model=name,
                revision=revision,
                seconds=seconds,
                request=content,
            )
            for answer in finished.answers
        ]

    def _check(self, wanted: RequestedAnswers, stored: np.ndarray) -> None:
        """Raises an error if more answers are missing than allowed."""
        lacking = stored.size - int(stored.sum())
        if not lacking:
            return
        prompt = int(np.flatnonzero(~stored.all(axis=1))[0])
        reason = self._find_reason(wanted, prompt)
        if self.max_reject_share is not None:
            check_share(self.title, lacking, stored.size, self.max_reject_share, wanted.ids[prompt], reason)
        elif refusals := [key for key, one in self.reasons.items() if one.kind == "refused"]:
            raise RequestError(f"{self.title}: {self.reasons[refusals[0]].text}")
        else:
            raise RuntimeError(
                f"{self.title}: {lacking} answers failed and were not stored; run again to ask for these only. "
                "The first: "
                f"{reason.text}"
            )

    def _find_reason(self, wanted: RequestedAnswers, prompt: int) -> Reason:
        return self.reasons.get(wanted.request_key(prompt), Reason("failed", "its segment can't be read"))

    def make_rejects(self, wanted: RequestedAnswers, stored: np.ndarray) -> list[Reject]:
        """Returns the missing answers with their reasons, in the order of the prompts."""
        found = []
        for prompt in np.flatnonzero(~stored.all(axis=1)).tolist():
            reason = self._find_reason(wanted, prompt)
            for gap in find_missing_ranges(prompt, stored[prompt]):
                found.append(Reject(wanted.ids[prompt], gap.first, gap.answers, reason.kind, reason.text))
        return found

    def report(self, job: Job) -> None:
        """Logs the cost of the generated answers and adds it to timing.json, because it differs between runs."""
        paid = self.cost
        values = {
            "answers_wanted": paid.wanted,
            "answers_generated": paid.generated,
            "store_hit_share": round(paid.stored / max(paid.wanted, 1), 4),
            "prompt_tokens_paid": paid.prompt_tokens,
            "completion_tokens_paid": paid.completion_tokens,
            "engine_start_seconds": round(paid.start_seconds, 3),
            "generate_seconds": round(paid.generate_seconds, 3),
            "tokens_per_second": round(paid.completion_tokens / paid.generate_seconds, 1)
            if paid.generate_seconds
            else 0.0,
        }
        job.add_measurements(answers=values)
        job.add_cost(
            self.title,
            wanted=paid.wanted,
            stored=paid.stored,
            generated=paid.generated,
            prompt_tokens=paid.prompt_tokens,
            completion_tokens=paid.completion_tokens,
            seconds=round(paid.generate_seconds, 3),
        )
        if paid.generated:
            job.progress.say(
                f"{self.title}: paid for {paid.generated} answers, {paid.prompt_tokens} prompt and "
                f"{paid.completion_tokens} "
                f"answer tokens, {paid.generate_seconds:.1f} s ({values['tokens_per_second']} tokens/s)"
            )


def _make_stored_text(answer: Answer, scored: bool) -> str:
    if scored:
        if answer.log_probs is None:
            raise RuntimeError("the engine gave no log probabilities for a given answer")
        return format_log_probs(answer.log_probs)
    return answer.original_text or answer.text


def make_generation_spec(checkpoint: Checkpoint, sampling: Sampling, draw: int, store: Path) -> GenerationSpec:
    """Returns the part of the key that all requests of a run share: the model and its settings."""
    template = read_template(checkpoint, store)
    return GenerationSpec(
        model=checkpoint.identity,
        family=checkpoint.family,
        precision=checkpoint.precision,
        context_tokens=checkpoint.context_tokens,
        template=template.hash,
        banned=template.banned,
        sampling=sampling,
        draw=draw,
        limits=checkpoint.limits,
    )

"""Asks several models one question, and lets discriminator and judge look at the answers.

Engines are those of the stages: same weights, prompts and sampling. Each is started for its answer and closed, so that
host memory holds one at a time, or kept for the next question.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flows.chat.candidates import Candidate, LeftOut
from flows.chat.question import AskedQuestion
from flows.jobs import open_job
from stages.config.params import Params
from stages.config.sampling import Sampling
from stages.engines.engine import Answer, Engine, EngineError, Request, RequestError, StartOptions
from stages.engines.replay import MissingAnswers
from stages.engines.start import start_engine
from stages.groups.response import is_whole_text
from stages.job.devices import list_devices
from stages.job.failure import Failure
from stages.job.host_memory import measure_free_memory
from stages.judging.judge import JudgeItem, JudgeQuestion, judge_items, make_fit_check, make_judge_sampling
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.identity import CARD, list_content

GIB = 1 << 30
ENGINE_BYTES = GIB  # of host memory that an engine takes beside weights and KV cache
FREE_SHARE = 0.7  # of the free host memory that engines which are kept may take
# What a person's question can meet: a missing answer, a server that does not start, a prompt that is too long.
_FAILURES = (EngineError, MissingAnswers, RequestError, Failure, ValueError, OSError)


@dataclass(frozen=True)
class PanelReply:
    """What one model said, and what discriminator and judge say of it; None where they were not asked."""

    name: str
    title: str
    text: str
    finish_reason: str
    tokens: int
    teacher_probability: float | None = None  # of the discriminator before the loop: that a teacher wrote it
    verdict: int | None = None
    explanation: str = ""  # the judge's text, or the rule that decided
    fault: str = ""  # why there is no answer


ScoreTexts = Callable[[AskedQuestion, Sequence[str]], list[float]]


class Panel:
    """Models that are asked the same; use it in a `with` block, which closes all engines."""

    def __init__(self, root: Path, store: Path, params: Params, *, keep: bool, say: Callable[[str], None]) -> None:
        """With `keep` engines stay open until the block ends. `say` is called with messages about starts."""
        self._root, self._store, self._params, self._keep, self._say = root, store, params, keep, say
        self._open = ExitStack()
        self._engines: dict[tuple[Path, str], Engine] = {}
        self._scorer: ScoreTexts | None = None

    def __enter__(self) -> "Panel":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def ask(
        self, candidates: Sequence[Candidate], question: AskedQuestion, sampling: Sampling, seed: int = 0
    ) -> tuple[list[PanelReply], list[LeftOut]]:
        """Returns a reply of each model, and why the discriminator or the judge said nothing.

        A model that fails has a reply with a fault; the others are asked all the same.
        """
        replies = [self._ask_one(one, question, sampling, seed) for one in candidates]
        silent: list[LeftOut] = []
        replies = self._add_scores(replies, question, silent)
        return self._add_verdicts(replies, question, silent), silent

    def _ask_one(self, candidate: Candidate, question: AskedQuestion, sampling: Sampling, seed: int) -> PanelReply:
        request = Request(question.name, question.messages, question.images, sampling, seed=seed)
        try:
            with self._use_engine(candidate.checkpoint, candidate.title, "evaluate", question.name) as engine:
                ((_, (answer,)),) = engine.generate([request])
        except _FAILURES as error:
            return PanelReply(candidate.name, candidate.title, "", "failed", 0, fault=" ".join(str(error).split()))
        fault = answer.finish_reason if answer.failed else ""
        return PanelReply(
            candidate.name, candidate.title, answer.text, answer.finish_reason, answer.completion_tokens, fault=fault
        )

    @contextmanager
    def _use_engine(self, checkpoint: Checkpoint, title: str, stage: str, name: str) -> Iterator[Engine]:
        key = (checkpoint.folder, stage)
        if (opened := self._engines.get(key)) is not None:
            yield opened
            return
        self._say(f"starting {title}")
        options = StartOptions(self._store / "logs", missing=[(name, 1)], say=self._say, stage=stage)
        engine = start_engine(checkpoint, self._params.runtime, options)
        if self._keep:
            self._engines[key] = engine
            self._open.callback(engine.close)
            yield engine
            return
        try:
            yield engine
        finally:
            engine.close()

    # --- discriminator and judge --------------------------------------------------------------------------------------

    def _add_scores(
        self, replies: list[PanelReply], question: AskedQuestion, silent: list[LeftOut]
    ) -> list[PanelReply]:
        """Adds the discriminator's probabilities; truncated, empty and repeating texts have none, as in the loop."""
        whole = [place for place, one in enumerate(replies) if is_whole_text(one.text, one.finish_reason)]
        try:
            if self._scorer is None:
                self._scorer = self._load_scorer()
            scores = self._scorer(question, [replies[place].text for place in whole]) if whole else []
        except _FAILURES as error:
            silent.append(LeftOut("discriminator", " ".join(str(error).split())))
            return replies
        for place, score in zip(whole, scores, strict=True):
            replies[place] = replace(replies[place], teacher_probability=score)
        return replies

    def _load_scorer(self) -> ScoreTexts:
        from flows.chat.teacher_score import load_text_scorer  # local import: needs torch

        job = open_job("ril", None, self._root, self._params)
        for needed in ("data/warm_start", "data/discriminator"):
            if not (self._root / needed).is_dir():
                raise job.explain_missing(needed)
        self._say("loading the discriminator")
        return load_text_scorer(self._root, self._store, self._params)

    def _add_verdicts(
        self, replies: list[PanelReply], question: AskedQuestion, silent: list[LeftOut]
    ) -> list[PanelReply]:
        """Adds the judge's verdicts if the reference is known; an answer that failed has none."""
        if not question.reference:
            return replies
        from stages.vlm.reader import load_chat  # local import: needs torch

        block = self._params.verdict
        place = self._root / "data" / "model" / block.model
        if not (place / CARD).is_file():
            silent.append(LeftOut("judge", f"data/model/{block.model} is missing; dvc repro model@{block.model}"))
            return replies
        said = [number for number, one in enumerate(replies) if not one.fault]
        items = [JudgeItem(question.name, question.text, question.reference, replies[number].text) for number in said]
        sampling = make_judge_sampling(block)
        try:
            judge = open_verified(place, self._store)
            fits = make_fit_check(load_chat(judge), judge.context_tokens, sampling.max_tokens)
            found = judge_items(items, partial(self._ask_judge, judge, sampling), fits, block.form)
        except _FAILURES as error:
            silent.append(LeftOut("judge", " ".join(str(error).split())))
            return replies
        for number, one in zip(said, found, strict=True):
            replies[number] = replace(replies[number], verdict=one.verdict, explanation=one.explanation)
        return replies

    def _ask_judge(
        self, judge: Checkpoint, sampling: Sampling, prompts: Sequence[JudgeQuestion]
    ) -> list[Answer | None]:
        requests = [Request(one.id, one.messages, one.images, sampling) for one in prompts]
        title = "the judge"
        with self._use_engine(judge, title, "verdict", requests[0].name) as engine:
            outcomes = dict(engine.iter_outcomes(requests))
        said = [outcomes[place] for place in range(len(requests))]
        return [None if isinstance(one, str) or one[0].failed else one[0] for one in said]


def fits_together(checkpoints: Sequence[Checkpoint], kv_cache_gib: int, free: int | None = None) -> bool:
    """Whether host memory has room for engines of all these models at a time; never on GPUs, whose engines fill one.

    `free` is the free host memory in bytes, by default what this process may take.
    """
    if list_devices():
        return False
    weights = sum(file.stat().st_size for one in checkpoints for file in list_content(one.weights))
    local = sum(one.endpoint is None for one in checkpoints)
    needed = weights + local * (kv_cache_gib * GIB + ENGINE_BYTES)
    return needed <= FREE_SHARE * (measure_free_memory() if free is None else free)

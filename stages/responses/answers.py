"""Asking a model through the store: what is stored is served, what is missing is generated and stored, wave by wave."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

from stages.engines import Answer, Engine, EngineError, Need, Request, RequestError, start_engine
from stages.job import Job
from stages.job.blocks import Runtime, Sampling
from stages.responses.key import Asked, answer_key, request_seed
from stages.responses.store import Store, StoredAnswer
from stages.vlm import Checkpoint, load_chat, open_checkpoint

WAVE_ANSWERS = 1024  # answers of one call of the engine and of one segment: the most that a crash can cost


class Prompt(Protocol):
    """What is asked; a `Question` is one."""

    @property
    def id(self) -> str: ...  # for messages and provenance, no part of the key
    @property
    def messages(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def images(self) -> Sequence[bytes]: ...
    @property
    def image_sha256(self) -> Sequence[str]: ...


StartEngine = Callable[[Checkpoint, Runtime, Need], Engine]


def answers(
    job: Job,
    checkpoint_folder: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    n: int,
    draw: int,
    title: str,
    start: StartEngine = start_engine,
) -> list[list[StoredAnswer]]:
    """n answers of one model to each prompt, in the order of `prompts` and of the samples 0 .. n - 1.

    Only what the store lacks is generated; when it lacks nothing, no engine starts. Raises RequestError for a prompt
    that the model can't take, EngineError when the engine can't go on, RuntimeError when answers failed, MissingAnswers
    where the store is all there is; what was finished is stored by then.
    """
    if sampling.temperature == 0 and n > 1:
        raise ValueError(f"{title}: temperature 0 writes the same answer {n} times; set responses: 1, or raise it")
    checkpoint = open_checkpoint(checkpoint_folder)
    asked = asked_of(checkpoint, sampling, draw)
    request_keys = [asked.request_key(prompt.messages, prompt.image_sha256) for prompt in prompts]
    keys = [[answer_key(request_key, sample) for sample in range(n)] for request_key in request_keys]
    wanted = list(dict.fromkeys(key for row in keys for key in row))  # two equal prompts share their answers
    folder = job.store / "responses" / asked.slug
    store = Store(folder, job.progress.say)
    found = store.fetch(wanted)
    missing = _missing(prompts, request_keys, keys, found.keys(), sampling)
    job.progress.say(
        f"{title}: {len(wanted)} answers wanted, {len(found)} in the store ({len(found) / max(len(wanted), 1):.0%}), "
        f"{len(wanted) - len(found)} to generate"
    )
    if missing:
        lacking = [(request.name, request.n) for _, _, request in missing]
        engine = start(checkpoint, job.block(Runtime), Need(job.store / "logs", lacking, job.progress.say))
        try:
            written = _generate(engine, store, missing)
            failed = [answer for answer in job.progress.track(written, title, len(wanted), len(found)) if answer.failed]
        finally:
            engine.close()
        if failed:
            raise RuntimeError(
                f"{title}: {len(failed)} answers failed and were not stored; run again to ask for these only. The first: "
                f"{failed[0].finish_reason}"
            )
        found = Store(folder, job.progress.say).fetch(wanted)  # as every later reader sees it, other writers included
    return [[found[key] for key in row] for row in keys]


def asked_of(checkpoint: Checkpoint, sampling: Sampling, draw: int) -> Asked:
    """Who is asked and how, as the part of the key that a run's requests share."""
    chat = load_chat(checkpoint)
    return Asked(
        model=checkpoint.identity,
        family=checkpoint.family,
        precision=checkpoint.precision,
        context_tokens=checkpoint.context_tokens,
        template=chat.template_hash,
        banned=tuple(chat.banned_token_ids),
        sampling=sampling,
        draw=draw,
    )


Missing = tuple[str, int, Request]  # key of the request, first sample, the request itself


def _missing(
    prompts: Sequence[Prompt],
    request_keys: Sequence[str],
    keys: Sequence[Sequence[str]],
    found: Set[str],
    sampling: Sampling,
) -> list[Missing]:
    """One request for each run of neighbouring samples that the store lacks."""
    missing: list[Missing] = []
    for request_key, (prompt, row) in dict(zip(request_keys, zip(prompts, keys, strict=True), strict=True)).items():
        absent = [sample for sample, key in enumerate(row) if key not in found]
        starts = [sample for sample in absent if sample - 1 not in absent]
        ends = [sample for sample in absent if sample + 1 not in absent]
        for first, last in zip(starts, ends, strict=True):
            seed = request_seed(request_key) + first
            request = Request(prompt.id, prompt.messages, prompt.images, sampling, last - first + 1, seed)
            missing.append((request_key, first, request))
    return missing


def _waves(missing: Sequence[Missing]) -> Iterator[list[Missing]]:
    """Cuts the work at fixed places. A killed run lacks whole waves, so the next one makes the same batches again."""
    wave: list[Missing] = []
    count = 0
    for item in missing:
        wave.append(item)
        count += item[2].n
        if count >= WAVE_ANSWERS:
            yield wave
            wave, count = [], 0
    if wave:
        yield wave


def _generate(engine: Engine, store: Store, missing: Sequence[Missing]) -> Iterator[Answer]:
    """Yields answers as they are finished; each wave is on disk before the next one starts."""
    for wave in _waves(missing):
        finished: dict[int, list[StoredAnswer]] = {}
        try:
            for index, written in engine.generate([request for _, _, request in wave]):
                finished[index] = [_stored(engine, wave[index], answer) for answer in written if not answer.failed]
                yield from written
        except (EngineError, RequestError):  # what it had finished was paid for
            store.append([answer for index in sorted(finished) for answer in finished[index]])
            raise
        store.append([answer for index in sorted(finished) for answer in finished[index]])


def _stored(engine: Engine, item: Missing, answer: Answer) -> StoredAnswer:
    request_key, first, request = item
    sample = first + answer.index
    return StoredAnswer(
        key=answer_key(request_key, sample),
        request_key=request_key,
        sample=sample,
        question_id=request.name,
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        engine=engine.name,
        engine_version=engine.version,
    )

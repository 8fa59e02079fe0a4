"""How likely a model finds the reference answers of questions; through the store, so that each is paid for once.

A request is the question with the reference as the assistant's turn. Its stored answer has the tokens of the reference
and, as text, their log probabilities (`stages.responses.score_text`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.corpora.rows import QuestionFolder, QuestionKeyParts, split_target
from stages.engines.engine import SCORING
from stages.job.bounded import UnusableFile
from stages.job.job import Job
from stages.job.lazy_sequence import LazySequence
from stages.job.rejects import Reject
from stages.responses.answers import AnswerSession, Generation
from stages.responses.requested import RequestedAnswers
from stages.responses.score_text import parse_log_probs
from stages.responses.store import Store


@dataclass(frozen=True)
class ReferencePrompt:
    """A question with its reference answer as the last turn."""

    id: str
    messages: tuple[dict[str, str], ...]
    images: Sequence[bytes]
    image_sha256: tuple[str, ...]


class ReferencePrompts(LazySequence[ReferencePrompt]):
    """Questions with their reference answers, read from files on access."""

    def __init__(self, questions: QuestionFolder) -> None:
        self._questions = questions

    def __len__(self) -> int:
        return len(self._questions)

    def read_item(self, place: int) -> ReferencePrompt:
        one = self._questions[place]
        return ReferencePrompt(one.id, _add_reference(one.messages, one.answer), one.images, one.image_sha256)

    def iter_key_parts(self) -> Iterator[QuestionKeyParts]:
        """Yields all prompts in order, without reading images."""
        for row in self._questions.iter_columns(["id", "messages", "image_sha256", "answer"]):
            messages, _ = split_target(row["messages"])
            yield QuestionKeyParts(row["id"], _add_reference(messages, row["answer"] or ""), tuple(row["image_sha256"]))


def _add_reference(messages: Sequence[Mapping[str, str]], answer: str) -> tuple[dict[str, str], ...]:
    return (*map(dict, messages), {"role": "assistant", "content": answer})


@dataclass(frozen=True)
class ReferenceScores:
    """Log probabilities of reference answers under one model, in the order of the questions."""

    log_probs: np.ndarray  # [questions] float64: sum over the answer's tokens, end-of-turn token included; nan: none
    tokens: np.ndarray  # [questions] int64: number of these tokens, of this model
    rejects: list[Reject]  # the questions without one, with the reasons


def score_references(
    job: Job, checkpoint_folder: Path, questions: QuestionFolder, title: str, max_reject_share: float
) -> ReferenceScores:
    """Returns log p(reference | question) of each question under the model in `checkpoint_folder`.

    Only what the store lacks is computed; if it lacks nothing, no engine starts. Memory does not grow with the length
    of the answers. Raises TooManyRejects when the share of questions without a score exceeds `max_reject_share`,
    UnusableFile when a stored text is no list of numbers.
    """
    prompts = ReferencePrompts(questions)
    session = AnswerSession.open(job, Generation(checkpoint_folder, SCORING), title, max_reject_share=max_reject_share)
    wanted = RequestedAnswers.from_prompts(session.asked, prompts.iter_key_parts(), 1)
    store = Store(session.folder, job.progress.say)
    while True:
        damaged = len(store.damaged)
        stored = session.complete(store, wanted, prompts)
        log_probs, tokens = _read_sums(store, wanted)
        if len(store.damaged) == damaged:  # else a segment had readable keys but damaged texts
            break
    session.report(job)
    return ReferenceScores(log_probs, tokens, session.make_rejects(wanted, stored))


def _read_sums(store: Store, wanted: RequestedAnswers) -> tuple[np.ndarray, np.ndarray]:
    sums, counts = np.full(len(wanted), np.nan), np.zeros(len(wanted), np.int64)
    for block in wanted.iter_blocks():
        rows, there = wanted.read_rows(store, block, ["key", "text"])
        places = block.start + np.flatnonzero(there[:, 0])
        for place, key, text in zip(places, rows["key"].to_pylist(), rows["text"].to_pylist(), strict=True):
            try:
                values = parse_log_probs(text)
            except UnusableFile as error:
                raise UnusableFile(
                    f"{store.folder}: answer {key} of question {wanted.ids[place]!r}: {error}; move the folder away, "
                    "and the questions are scored again"
                ) from error
            sums[place], counts[place] = sum(values), len(values)
    return sums, counts

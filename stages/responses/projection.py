"""A stage's out as a projection of the store: the answers to its questions in order, without times or engines.

Reads and writes block by block, so that memory does not grow with the number of questions. Equal answers give equal
bytes, regardless of the segments that hold them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.config.sampling import Sampling
from stages.corpora.rows import QuestionFolder
from stages.job.files import ROWS_PER_SHARD, write_parquet
from stages.job.job import Job
from stages.job.rejects import write_rejects
from stages.responses.answers import AnswerSession, Generation
from stages.responses.requested import RequestedAnswers
from stages.responses.schemas import ANSWERS
from stages.responses.segment_rows import rechunk
from stages.responses.store import Store
from stages.responses.variety import AnswerVariety

_COLUMNS = {  # of ANSWERS: from which column of the store
    "sample": "sample",
    "response": "text",
    "finish_reason": "finish_reason",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "response_key": "key",
    "token_ids": "token_ids",
}


class AnswerSettings(Protocol):
    """Settings that the blocks `teachers.<id>` and `rollout` share; each stage imports its own block."""

    @property
    def responses(self) -> int: ...
    @property
    def draw(self) -> int: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def max_reject_share(self) -> float: ...
    @property
    def max_empty_share(self) -> float: ...
    @property
    def max_same_share(self) -> float: ...


@dataclass
class AnswerCounts:
    """Sums over rows of ANSWERS."""

    questions: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: int = 0
    empty: int = 0

    def add(self, rows: pa.Table, questions: int) -> None:
        """Adds `rows`, the answers to `questions` questions, to the counts."""
        self.questions += questions
        self.answers += rows.num_rows
        self.prompt_tokens += pc.sum(rows["prompt_tokens"]).as_py() or 0
        self.completion_tokens += pc.sum(rows["completion_tokens"]).as_py() or 0
        self.cut += pc.sum(pc.equal(rows["finish_reason"], "length")).as_py() or 0
        self.empty += pc.sum(pc.equal(rows["response"], "")).as_py() or 0

    def compute_statistics(self) -> dict[str, float]:
        """Returns counts and means, for metrics and tables."""
        return {
            "questions": self.questions,
            "answers": self.answers,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "mean_tokens": self.completion_tokens / max(self.answers, 1),
            "truncated_share": self.cut / max(self.answers, 1),
            "empty_share": self.empty / max(self.answers, 1),
        }


def write_answers(
    job: Job, checkpoint_folder: Path, questions: QuestionFolder, block: AnswerSettings
) -> dict[str, float]:
    """Writes the stage's out: `block.responses` answers to each question, as rows of ANSWERS; returns statistics.

    Unavailable answers become lines of reports/<stage>/rejects.jsonl. Raises TooManyRejects when they exceed
    `block.max_reject_share` of all answers, UselessAnswers when they are empty or all the same, as soon as 1,024 of
    them show it.
    """
    fresh = AnswerVariety(job.name, block, job.progress.say)
    generation = Generation(
        checkpoint_folder,
        block.sampling,
        block.responses,
        block.draw,
        lambda rows: fresh.add((row.question_id, row.text) for row in rows),
    )
    asking = AnswerSession.open(job, generation, job.name, max_reject_share=block.max_reject_share)
    wanted = RequestedAnswers.from_prompts(asking.asked, questions.iter_key_parts(), block.responses)
    store = Store(asking.folder, job.progress.say)
    while True:
        damaged = len(store.damaged)
        with job.measure_time("generate"):
            stored = asking.complete(store, wanted, questions)
        with job.measure_time("project"), job.writing() as folder:
            counts = write_projection(folder, store, wanted, AnswerVariety(job.name, block, job.progress.say))
        if len(store.damaged) == damaged:  # else a segment had readable keys but damaged texts
            break
    rejects = asking.make_rejects(wanted, stored)
    write_rejects(job.reports / "rejects.jsonl", rejects)
    if rejects:
        job.progress.say(
            f"{job.name}: {len(rejects)} questions lack answers; reasons in {job.reports / 'rejects.jsonl'}"
        )
    asking.report(job)
    return {**counts.compute_statistics(), "rejected_answers": sum(reject.answers for reject in rejects)}


def write_projection(folder: Path, store: Store, wanted: RequestedAnswers, variety: AnswerVariety) -> AnswerCounts:
    """Writes the stored answers among `wanted` into `folder`, as shards with rows of ANSWERS; `variety` checks them."""
    counts = AnswerCounts()
    shards = rechunk(_iter_blocks(store, wanted, counts, variety), ROWS_PER_SHARD)
    first = next(shards, ANSWERS.empty_table())  # a stage's out contains a file even without rows
    for number, rows in enumerate(chain([first], shards)):
        write_parquet(folder / f"part-{number:05d}.parquet", rows)
    return counts


def _iter_blocks(
    store: Store, wanted: RequestedAnswers, counts: AnswerCounts, variety: AnswerVariety
) -> Iterator[pa.Table]:
    for block in wanted.iter_blocks():
        found, there = wanted.read_rows(store, block, list(_COLUMNS.values()))
        by_question = there.sum(axis=1)
        places = np.repeat(np.arange(len(block)), by_question)
        ids = pa.array(wanted.ids[block.start : block.stop], pa.string()).take(pa.array(places))
        columns = [ids if name == "question_id" else found[_COLUMNS[name]] for name in ANSWERS.names]
        rows = pa.table(columns, schema=ANSWERS)
        counts.add(rows, int((by_question > 0).sum()))
        variety.add(zip(rows["question_id"].to_pylist(), rows["response"].to_pylist(), strict=True))
        yield rows

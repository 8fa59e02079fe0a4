"""Teachers that score the student's own answers in the loop (`ril.objective: opd`).

Each gets the question in its own template, and then the student's token ids as they were sampled (trap T6). What comes
back is recorded with the step, so that a resumed step asks nobody again.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.corpora.rows import Question
from stages.engines.engine import SCORING, Engine, EngineError, Request, StartOptions
from stages.engines.start import start_engine
from stages.groups.response import STUDENT, Response
from stages.job.job import Job
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.context_limit import explain_too_long
from stages.vlm.reader import Reader, load_reader
from stages.vlm.shared_ids import SharedIds, match_ids


@dataclass(frozen=True)
class LoopTeacher:
    """One entry of `ril.distillation`."""

    name: str
    checkpoint: Checkpoint
    reader: Reader
    ids: SharedIds
    engine: Engine | None = None  # None on ranks other than the first

    def explain_refusal(self, question: Question, answer_tokens: int) -> str | None:
        """Returns why the question with the longest answer exceeds this teacher's context, None if it fits."""
        asked = question.messages, question.images
        reason = explain_too_long(self.reader, self.checkpoint, *asked, answer_tokens + SCORING.max_tokens)
        return None if reason is None else f"{self.name} of ril.distillation: {reason}"

    def score(self, questions: Sequence[Question], groups: Sequence[Sequence[Response]]) -> list[tuple[float, ...]]:
        """Returns log p of the tokens of each student answer under this teacher, before temperature, in order.

        () for an answer with a token that the teacher does not have. Raises EngineError if the engine gives up on one.
        """
        assert self.engine is not None
        found: list[tuple[float, ...]] = []
        asked: list[tuple[int, Request]] = []
        for question, group in zip(questions, groups, strict=True):
            for one in group:
                if one.source != STUDENT:
                    continue
                if ids := self.ids.translate(one.token_ids):
                    request = Request(question.id, question.messages, question.images, SCORING, given_ids=ids)
                    asked.append((len(found), request))
                found.append(())
        for number, (answer,) in self.engine.generate([request for _, request in asked]):
            if answer.failed or answer.log_probs is None:
                raise EngineError(
                    f"teacher {self.name} gave no log probabilities of an answer to {asked[number][1].name}: "
                    f"{answer.finish_reason}"
                )
            found[asked[number][0]] = answer.log_probs
        return found


def read_teachers(job: Job, student: tuple[str, Reader]) -> list[LoopTeacher]:
    """Returns the entries of `ril.distillation` without engines; `student` is its name and its reader.

    Raises Failure for a teacher that does not read the student's tokens.
    """
    found = []
    for name in job.block(Ril).distillation:
        checkpoint = open_verified(job.input(f"data/model/{name}"), job.store)
        reader = load_reader(checkpoint)
        ids = match_ids((student[0], student[1].chat), (name, reader.chat))
        found.append(LoopTeacher(name, checkpoint, reader, ids))
    return found


def start_teachers(
    teachers: Sequence[LoopTeacher], runtime: Runtime, options: Sequence[StartOptions], stack: ExitStack
) -> list[LoopTeacher]:
    """Returns the teachers with their engines, which `stack` closes; `options` are those of each."""
    found = []
    for one, need in zip(teachers, options, strict=True):
        engine = start_engine(one.checkpoint, runtime, need)
        stack.callback(engine.close)
        found.append(replace(one, engine=engine))
    return found


def add_log_probs(
    teachers: Sequence[LoopTeacher], questions: Sequence[Question], groups: Sequence[Sequence[Response]]
) -> list[list[Response]]:
    """Returns the groups whose student answers have `teacher_log_probs`: () where a teacher lacks a token."""
    scored = [iter(one.score(questions, groups)) for one in teachers]

    def add(one: Response) -> Response:
        if one.source != STUDENT:
            return one
        values = tuple(next(rest) for rest in scored)
        return replace(one, teacher_log_probs=values if all(values) else ())

    return [[add(one) for one in group] for group in groups]

"""Engines that follow a script and record what they are asked and given: the student's and the judge's."""

import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from stages.engines.engine import Answer, EngineError, Request
from stages.vlm.chat import RemoteChat
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from tests.loop.plain import pick
from tests.loop.plain_models import Vlm
from tests.loop.world import LEARNING, MAX_TOKENS, VALIDATION

# Validation answers that are right, by the number of times that the student got new weights.
RIGHT = {0: ("v1",), 1: ("v0", "v1", "v3"), 2: ("v2", "v3"), 3: ("v0", "v2", "v3")}
_GRADED = re.compile(
    r"<question> (.*) </question>\n<candidate (\w+)> (.*) </candidate \2>\n<rubric> (.*) </rubric>", re.DOTALL
)
TASKS = {task.id: task for task in LEARNING}
BROKEN = "gone"  # how an answer ends that the judge's engine gives up on
_JUDGED = re.compile(
    r"<question> (.*) </question>\n<candidate (\w+)> (.*) </candidate \2>\n<reference> (.*) </reference>", re.DOTALL
)


@dataclass
class ScriptedStudent:
    """Writes answers that depend on the question, the sample, and how often it got weights."""

    checkpoint: Checkpoint
    asked: list[list[Request]] = field(default_factory=list)  # of each step
    validated: list[list[Request]] = field(default_factory=list)
    pushes: list[dict[str, Tensor]] = field(default_factory=list)  # copies of the weights
    name: str = "script"
    version: str = "1"

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.checkpoint.weights)

    @property
    def chat(self) -> Any:
        """Nobody may need it."""
        raise AssertionError("the loop encodes prompts with its own reader")

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields the last request first."""
        greedy = all(request.sampling.temperature == 0 for request in requests)
        (self.validated if greedy else self.asked).append(list(requests))
        for number, request in reversed(list(enumerate(requests))):
            if greedy:
                reference = {task.id: task.answer for task in VALIDATION}[request.name]
                text = reference if request.name in RIGHT[len(self.pushes)] else "0"
                yield number, [Answer(0, f"so {text}", (), "stop", 1, 1)]
            else:
                answers = [self.write(len(self.pushes), request.name, sample) for sample in range(request.n)]
                yield number, answers if request.log_probs else [replace(one, log_probs=None) for one in answers]

    def write(self, age: int, question: str, sample: int) -> Answer:
        """Answer `sample` after so many pushes, mostly in tokens of one character.

        Some are cut, one is empty, one repeats itself.
        """
        draw = random.Random(f"{age} {question} {sample}")
        text = " ".join(str(draw.randrange(100)) for _ in range(draw.randint(1, 4)))
        if (age, sample) == (1, 2):
            text = ""
        pieces, finish = list(text), "stop"
        if (age, sample) == (0, 1):
            pieces = [" teacher model"] * 5
            text = "".join(pieces).strip()
        ids = [token for piece in pieces for token in self._tokenizer.encode(piece, add_special_tokens=False)]
        if draw.random() < 0.2 and text:
            ids, finish = (ids * MAX_TOKENS)[:MAX_TOKENS], "length"
            text = self._tokenizer.decode(ids).strip()
        else:
            ids.append(self._tokenizer.eos_token_id)
        log_probs = tuple(-draw.uniform(5, 8) for _ in ids)
        return Answer(sample, text, tuple(ids), finish, 1, len(ids), log_probs)

    def update_weights(self, named: Iterable[tuple[str, Tensor]]) -> int:
        """Keeps a copy."""
        self.pushes.append({name: value.detach().clone() for name, value in named})
        return sum(value.nbytes for value in self.pushes[-1].values())

    def close(self) -> None:
        """Nothing to free."""


def judge_answer(reference: str, candidate: str) -> int | None:
    """What the scripted judge finds: one of twelve has no verdict."""
    found = zlib.crc32(f"{reference}|{candidate}".encode())
    return None if found % 12 == 0 else found // 12 % 2


@dataclass
class ScriptedJudge:
    """Says what `judge_answer` finds in the candidate and the reference, or the rubric, that it reads."""

    checkpoint: Checkpoint
    asked: list[list[tuple[str, str, str]]] = field(default_factory=list)  # question, candidate, reference
    graded: list[list[tuple[str, str, str]]] = field(default_factory=list)  # question, candidate, rubric
    chat: RemoteChat = field(default_factory=RemoteChat)
    name: str = "script"
    version: str = "1"

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields the last request first; of two failures one has no verdict and one no text."""
        contents = [request.messages[-1]["content"] for request in requests]
        matches = [_JUDGED.search(content) or _GRADED.search(content) for content in contents]
        asked = [(found[1], found[3], found[4]) for found in matches if found is not None]
        assert len(asked) == len(contents), contents
        (self.graded if "<rubric>" in "".join(contents) else self.asked).append(asked)
        for number, (_, candidate, reference) in reversed(list(enumerate(asked))):
            verdict = judge_answer(reference, candidate)
            said = "hm" if verdict is None else f"{'same' if verdict else 'no'}. <answer>{verdict}</answer>"
            broken = verdict is None and len(candidate) % 2
            yield number, [Answer(0, "" if broken else said, (), BROKEN if broken else "stop", 1, 1)]

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class ScriptedTeacher:
    """Scores the tokens that it is given, with the model itself."""

    checkpoint: Checkpoint
    asked: list[list[Request]] = field(default_factory=list)  # of each step
    fails_at: int | None = None  # the call that ends with an error
    name: str = "script"
    version: str = "1"

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields the last request first."""
        if len(self.asked) == self.fails_at:
            raise EngineError("the machine was taken away")
        self.asked.append(list(requests))
        vlm = Vlm(self.checkpoint.weights)
        for number, request in reversed(list(enumerate(requests))):
            ids = request.given_ids
            with torch.no_grad():
                found = pick(vlm.spread(TASKS[request.name], [ids])[0], ids)
            yield number, [Answer(0, "", ids, "stop", 1, len(ids), tuple(found.tolist()))]

    def close(self) -> None:
        """Nothing to free."""


def make_engines(folder: Path) -> tuple[ScriptedStudent, ScriptedJudge]:
    """The engines of the project in `folder`."""
    data = folder / "data"
    return ScriptedStudent(open_checkpoint(data / "warm_start")), ScriptedJudge(open_checkpoint(data / "model/judge"))

"""How much each stage has to do: answers, tokens, training steps and their arithmetic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.estimate.amounts import Range
from flows.estimate.shapes import PATCHES_PER_TOKEN, ModelShape, TextShape
from flows.jobs import list_runs
from stages import judging
from stages.benchmarks.registry import find_benchmark
from stages.config.benchmarks import TINY_BENCHMARKS
from stages.config.model import TEXT_FAMILIES
from stages.config.params import Params
from stages.config.splits import Split
from stages.corpora.rows import QuestionFolder

IMAGE_TOKENS = Range(0.25, 0.9)  # share of a prompt that its images are. Assumed
SHORTEST = 1 / 8  # of the longest prompt and answer that parameters allow: the mean is at least that. Assumed
EXAM_FILES = ("judge_cases.jsonl", "judge_attacks.jsonl")
DISCRIMINATOR_PROMPT = 64  # tokens around an answer that the discriminator reads (stages/adversary/prompt.py)
_EXAM = Path(judging.__file__).parent  # its answers, in files that are read without loading the judge's code


@dataclass(frozen=True)
class MeanLengths:
    """Mean tokens of a prompt and of an answer, where the user has said them."""

    prompt: float | None = None
    answer: float | None = None


@dataclass(frozen=True)
class Answers:
    """Answers that a stage wants of one model."""

    model: str  # entry of `models`, or student
    count: int  # wanted, by what parameters or the files there say
    prompts: int  # each of which is read once for all its answers
    prompt: Range  # tokens of one
    answer: Range  # tokens of one
    stored: int = 0  # of `count`, answers that the store has
    upper: bool = False  # whether `count` is an upper bound: rules and equal prompts need no answer

    @property
    def fresh(self) -> int:
        """Answers to generate."""
        return self.count - self.stored

    @property
    def tokens_in(self) -> Range:
        """Prompt tokens to read for those that are generated."""
        return self.prompt.scale(self.prompts * self.fresh / self.count if self.count else 0)

    @property
    def tokens_out(self) -> Range:
        """Tokens to generate."""
        return self.answer.scale(self.fresh)


@dataclass(frozen=True)
class StageWork:
    """What one run of a stage does."""

    answers: tuple[Answers, ...] = ()
    steps: int = 0
    step_tokens: Range = field(default_factory=Range)  # of one training step, every model's
    flops: Range = field(default_factory=Range)  # of training, reference and scoring passes; without engines


class Workload:
    """The work of every run of the pipeline with `params`."""

    def __init__(self, root: Path, params: Params, shapes: Mapping[str, ModelShape], lengths: MeanLengths) -> None:
        self._root, self._params, self._shapes, self._lengths = root, params, shapes, lengths
        self._student = shapes["student"]

    def find(self, run: str) -> StageWork:
        """Returns the work of `run`, such as `teacher@internvl3`."""
        stage, _, item = run.partition("@")
        if stage in ("warm_start", "discriminator", "ril"):
            return {"warm_start": self._warm_start, "discriminator": self._discriminator, "ril": self._ril}[stage]()
        return StageWork(tuple(self._list_answers(stage, item)))

    def iter_all(self) -> Iterator[tuple[str, StageWork]]:
        """Yields every run with its work, in order."""
        for run in list_runs(self._params):
            yield run, self.find(run)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _list_answers(self, stage: str, item: str) -> Iterator[Answers]:
        params = self._params
        if stage == "teacher":
            block = params.teachers[item]
            yield self._ask(block.model, self.count_kept(), block.responses, block.sampling.max_tokens)
        elif stage == "rollout":
            yield self._ask("student", self.count_kept(), params.rollout.responses, params.rollout.sampling.max_tokens)
        elif stage == "verdict":
            written = self.count_kept() * params.teachers[item].responses
            yield self._judge(params.verdict.model, written, params.teachers[item].sampling.max_tokens)
            if params.verdict.exam:
                yield self._judge(params.verdict.model, count_exam(), 64)
        elif stage == "selection" and params.selection.top:
            count = self.count_split(params.selection.split)
            for model in (params.selection.teacher, "student"):
                yield self._ask(model, count, 1, 1)
        elif stage == "evaluate":
            yield from self._evaluate(item)

    def _evaluate(self, item: str) -> Iterator[Answers]:
        block = self._params.evaluate
        folder = self._params.evaluations[item].checkpoint.removeprefix("data/model/")
        questions = self.count_split(block.split)
        rows = sum(questions if name in TINY_BENCHMARKS else find_benchmark(name).expected for name in block.benchmarks)
        count = questions * (1 + block.shuffled_images) + rows
        model = folder if folder in self._params.models else "student"
        yield self._ask(model, count, 1, block.max_tokens, upper=True)
        if block.scoring == "rules_and_judge":
            yield self._judge(block.judge, questions * (1 + block.shuffled_images), block.max_tokens)

    def _ask(self, model: str, prompts: int, each: int, longest: int, upper: bool = False) -> Answers:
        lengths = self.measure_prompt(model, longest), self.measure_answer(longest)
        return Answers(model, prompts * each, prompts, *lengths, upper=upper)

    def _judge(self, model: str, count: int, longest_answer: int) -> Answers:
        verdict = Range(8, self._params.verdict.max_tokens)
        room = self._params.models[model].context_tokens - self._params.verdict.max_tokens
        answer = self.measure_answer(longest_answer)
        prompt = Range(min(room, 120 + answer.low), min(room, 400 + 2 * answer.high))
        return Answers(model, count, count, prompt, verdict, upper=True)

    def measure_prompt(self, model: str, longest_answer: int) -> Range:
        """Mean tokens of a question to `model`, images included."""
        if self._lengths.prompt is not None:
            return Range.exactly(self._lengths.prompt)
        most = max(1, self._params.models[model].context_tokens - longest_answer)
        if self._params.models["student"].endpoint is None:  # the same questions as the student's
            most = min(most, self._params.models["student"].context_tokens)
        return Range(most * SHORTEST, most)

    def measure_answer(self, longest: int) -> Range:
        """Mean tokens of an answer of at most `longest`."""
        if self._lengths.answer is not None:
            return Range.exactly(min(self._lengths.answer, longest))
        return Range(max(1.0, longest * SHORTEST), longest)

    def count_kept(self) -> int:
        """Questions that teachers and student answer."""
        selection = self._params.selection
        count = self.count_split(selection.split)
        return min(count, selection.top) if selection.top else count

    def count_split(self, split: Split) -> int:
        """Questions of a split: as parameters say, or as many as the files there have where they say `all`."""
        wanted = self._params.questions.splits[split]
        if wanted != "all":
            return wanted
        folder = self._root / "data" / "questions"
        return len(QuestionFolder(folder, split)) if (folder / split).is_dir() else 0

    # --- training -----------------------------------------------------------------------------------------------------

    def _warm_start(self) -> StageWork:
        block, student = self._params.warm_start, self._student
        target = self.measure_answer(self._params.ril.sampling.max_tokens)
        row = self.measure_prompt("student", self._params.ril.sampling.max_tokens) + target
        tokens = row.scale(block.rows_per_step)
        scored = target.scale(block.rows_per_step)
        flops = self._train(student.text, tokens, bool(block.lora)) + count_head(student.text, scored, trains=True)
        flops += self._see(tokens, 1 if block.freeze_vision else 3)
        return StageWork(steps=block.steps, step_tokens=tokens, flops=flops.scale(block.steps))

    def _discriminator(self) -> StageWork:
        params, block, text = self._params, self._params.discriminator, self._student.text
        if not params.objective.uses_discriminator:
            return StageWork()
        texts = block.questions_per_step * (2 * block.responses_per_side + params.objective.negatives)
        tokens = self._measure_text(params.rollout.sampling.max_tokens).scale(texts)
        flops = self._train(text, tokens, bool(block.lora))
        return StageWork(steps=block.steps, step_tokens=tokens, flops=flops.scale(block.steps))

    def _measure_text(self, longest: int) -> Range:
        answer = self.measure_answer(longest)
        return Range(answer.low + DISCRIMINATOR_PROMPT / 4, answer.high + DISCRIMINATOR_PROMPT)

    def _ril(self) -> StageWork:
        params, block, text = self._params, self._params.ril, self._student.text
        longest = block.sampling.max_tokens
        rows, answer = 2 * block.group, self.measure_answer(longest)
        group = self.measure_prompt("student", longest) + answer.scale(rows)
        tokens = group.scale(block.questions_per_step)
        scored = answer.scale(rows * block.questions_per_step)
        updated = self._train(text, tokens, bool(block.lora)) + count_head(text, scored, trains=True)
        flops = updated.scale(block.inner_updates) + count_layers(text, tokens) + count_head(text, scored, trains=False)
        flops += self._see(tokens, 1)
        every = tokens
        if params.objective.uses_discriminator:
            texts = self._measure_text(longest).scale(block.questions_per_step)
            learned = texts.scale(rows + params.objective.negatives)
            if params.objective.discriminator_update != "frozen":
                flops += self._train(text, learned, bool(params.discriminator.lora)).scale(block.inner_updates)
            flops += count_layers(text, texts.scale(rows))
            every += learned
        return StageWork(tuple(self._list_loop_answers()), block.steps, every, flops.scale(block.steps))

    def _list_loop_answers(self) -> Iterator[Answers]:
        params, block = self._params, self._params.ril
        if not block.steps:
            return
        asked, longest = block.steps * block.questions_per_step, block.sampling.max_tokens
        if params.objective.samples:
            yield self._ask("student", asked, block.group, longest)
        rounds = 1 + block.steps // block.validation_every
        validated = rounds * self.count_split("validation")
        yield self._ask("student", validated, 1, longest)
        if params.objective.uses_judge:
            yield self._judge(params.verdict.model, asked * block.group, longest)
            if block.validation_scoring == "rules_and_judge":
                yield self._judge(params.verdict.model, validated, longest)
        graded = asked * block.group * len(params.objective.rubrics)  # those of teachers are asked about once
        if graded:
            yield self._judge(params.verdict.model, graded, longest)
        for name in params.distilled_models:  # each answer with its prompt: log p of a prompt is not taken from a cache
            read = self.measure_prompt(name, longest) + self.measure_answer(longest)
            yield Answers(name, asked * block.group, asked * block.group, read, Range.exactly(1))

    def _train(self, text: TextShape, tokens: Range, adapters: bool) -> Range:
        """Forward and backward passes; with adapters the frozen weights have no gradient of their own."""
        passes = (2 if adapters else 3) + self._params.runtime.gradient_checkpointing
        return count_layers(text, tokens).scale(passes)

    def _see(self, tokens: Range, passes: int) -> Range:
        """Passes of the vision tower over the images among `tokens` of prompts."""
        tower = self._student.tower
        if tower is None or self._params.models["student"].family in TEXT_FAMILIES:
            return Range()
        weights = tower.layers * (4 * tower.hidden**2 + (3 if tower.gated else 2) * tower.hidden * tower.feed_forward)
        return tokens.times(IMAGE_TOKENS).scale(2.0 * PATCHES_PER_TOKEN * weights * passes)


def count_layers(text: TextShape, tokens: Range) -> Range:
    """Returns the floating point operations of a forward pass of all layers, without attention itself.

    Attention adds 4 x layers x width x length: at 4,096 tokens a tenth for 7B, within the range of the rates.
    """
    return tokens.scale(2.0 * text.layers * sum(a * b for a, b in text.list_matrices().values()))


def count_head(text: TextShape, scored: Range, trains: bool) -> Range:
    """Returns the operations of the vocabulary head; in training its logits are computed twice."""
    return scored.scale(2.0 * text.head_weights * (4 if trains else 1))


def count_exam() -> int:
    """Returns the answers of the judge's exam: its cases, and each attack with its harmless twin."""
    cases, attacks = (len((_EXAM / name).read_text(encoding="utf-8").splitlines()) for name in EXAM_FILES)
    return cases + 2 * attacks

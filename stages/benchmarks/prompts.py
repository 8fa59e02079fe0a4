"""Prompts of samples: the styles of the data set, of two model families, and of lmms-eval.

Scores of one model differ by 10 to 20 points between styles (VLMEvalKit and lmms-eval issues), so that every score is
shown with its style. The literal sentences are those of the harnesses.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from stages.benchmarks.rules.vlmeval import has_chinese
from stages.benchmarks.sample import LazyImage, Sample
from stages.corpora.markers import IMAGE_MARKER

Style = Literal["dataset", "qwen", "internvl", "lmms"]
PROMPT_STYLES: tuple[Style, ...] = ("dataset", "qwen", "internvl", "lmms")
PromptPart = str | LazyImage
MakePrompt = Callable[[Sample], list[PromptPart]]

SELECT = "Please select the correct answer from the options above. \n"
DIRECTLY = "Answer with the option's letter from the given choices directly."
DIRECTLY_CN = "请直接回答选项字母。"
SHORT = "Answer the question using a single word or phrase."
_NUMBERED = re.compile(r"<image[ _](\d+)>")
_UNSENT = str.maketrans({"\ue000": " ", "\ue001": " "})  # characters reserved by the chat code


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt for the response store; images are read on access."""

    id: str
    parts: tuple[PromptPart, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """One user turn; `<image>` appears only at the positions of the images."""
        texts = [IMAGE_MARKER if isinstance(part, LazyImage) else _escape_markers(part) for part in self.parts]
        return [{"role": "user", "content": "".join(texts)}]

    @property
    def images(self) -> list[bytes]:
        """The encoded images as in the data set."""
        return [part.data for part in self.parts if isinstance(part, LazyImage)]

    @cached_property
    def image_sha256(self) -> list[str]:
        """Hashes of the images."""
        return [part.sha256 for part in self.parts if isinstance(part, LazyImage)]

    @property
    def sha256(self) -> str:
        """Hash of text and images; equal if and only if the prompts are equal."""
        text = "\0".join([self.messages[0]["content"], *self.image_sha256])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _escape_markers(text: str) -> str:
    return text.replace(IMAGE_MARKER, "‹image›").translate(_UNSENT)


def format_options(sample: Sample, form: str = "{}. {}") -> list[str]:
    """Returns one line per option."""
    return [form.format(letter, text) for letter, text in sample.options.items()]


def ask_dataset_choice(sample: Sample) -> list[PromptPart]:
    """Returns VLMEvalKit's multiple-choice prompt; images first."""
    lines = [f"Hint: {sample.hint}"] if sample.hint else []
    lines.append(f"Question: {sample.question}")
    text = "\n".join([*lines, *(["Options:", *format_options(sample), SELECT] if sample.options else [""])])
    return [*sample.pictures, text]


def ask_qwen_choice(sample: Sample) -> list[PromptPart]:
    """Returns the prompt of VLMEvalKit's Qwen models: no trailing blanks, a Chinese sentence for Chinese questions."""
    text = str(ask_dataset_choice(sample)[-1]).rstrip()
    if has_chinese(text) and sample.options:
        text = text.removesuffix(SELECT.rstrip()) + DIRECTLY_CN
    return [*sample.pictures, text]


def ask_internvl_choice(sample: Sample) -> list[PromptPart]:
    """Returns the prompt of VLMEvalKit's InternVL models."""
    lines = [*([sample.hint] if sample.hint else []), sample.question, *format_options(sample)]
    last = SHORT if not sample.options else DIRECTLY_CN if has_chinese("\n".join(lines)) else DIRECTLY
    return [*sample.pictures, "\n".join([*lines, last])]


def ask_lmms_choice(sample: Sample) -> list[PromptPart]:
    """Returns lmms-eval's common prompt: question, options, one sentence."""
    return [*sample.pictures, "\n".join([sample.question, *format_options(sample), DIRECTLY])]


def ask_plain(sample: Sample) -> list[PromptPart]:
    """Returns the images and the question only."""
    return [*sample.pictures, sample.question]


def ask_as_it_stands(sample: Sample) -> list[PromptPart]:
    """Returns the question only if it contains its options (on the hub), else `ask_lmms_choice` (TSV columns)."""
    held = all(text in sample.question for text in sample.options.values())
    return ask_plain(sample) if held else ask_lmms_choice(sample)


def append_sentence(sentence: str) -> MakePrompt:
    """Returns images, question, and a sentence."""

    def ask(sample: Sample) -> list[PromptPart]:
        return [*sample.pictures, f"{sample.question}{sentence}"]

    return ask


def interleave_images(ask: MakePrompt, pattern: re.Pattern[str] = _NUMBERED, first: int = 1) -> MakePrompt:
    """Moves image k to each of its markers; images without a marker are dropped (VLMEvalKit, MMMU).

    Without any marker the images stay where they are.
    """

    def place(sample: Sample) -> list[PromptPart]:
        parts = ask(sample)
        if not any(isinstance(part, str) and pattern.search(part) for part in parts):
            return parts
        return [
            piece
            for part in parts
            if isinstance(part, str)
            for piece in place_images(part, sample.pictures, pattern, first)
        ]

    return place


def place_images(text: str, pictures: Sequence[LazyImage], pattern: re.Pattern[str], first: int) -> list[PromptPart]:
    """Splits a text at its markers and inserts the pictures; a marker without a picture stays text."""
    pieces: list[PromptPart] = []
    end = 0
    for marker in pattern.finditer(text):
        number = int(marker.group(1)) - first
        if 0 <= number < len(pictures):
            pieces += [text[end : marker.start()], pictures[number]]
            end = marker.end()
    return [piece for piece in (*pieces, text[end:]) if piece != ""]


def move_numbered_first(ask: MakePrompt) -> MakePrompt:
    """Moves images named by markers to the front, by number; markers stay in the text (Qwen, lmms-eval)."""

    def place(sample: Sample) -> list[PromptPart]:
        texts = [part for part in ask(sample) if isinstance(part, str)]
        numbers = sorted({int(number) for text in texts for number in _NUMBERED.findall(text)})
        chosen = [sample.pictures[number - 1] for number in numbers if number <= len(sample.pictures)]
        return [*(chosen or sample.pictures), *texts]

    return place


CHOICE_PROMPTS: dict[Style, MakePrompt] = {
    "dataset": ask_dataset_choice,
    "qwen": ask_qwen_choice,
    "internvl": ask_internvl_choice,
    "lmms": ask_lmms_choice,
}
MMMU: dict[Style, MakePrompt] = {
    "dataset": interleave_images(ask_dataset_choice),
    "qwen": move_numbered_first(ask_qwen_choice),
    "internvl": interleave_images(ask_internvl_choice),
    "lmms": move_numbered_first(ask_lmms_choice),
}

_STEPS = (
    "\nAnswer the preceding {kind} question. The last line of your response should follow this format: "
    "'Answer: \\boxed{{{what}}}' (without quotes). If you are uncertain, give the most likely answer. Think step "
    "by step."
)

_DIRECT_LINE = re.compile(r"(?:Answer (?:with|the question)|Please (?:select|try|answer directly)|请直接).*")


def ask_step_by_step(parts: Sequence[PromptPart], sample: Sample) -> list[PromptPart]:
    """Returns the prompt with a request for steps and a marked last line, without the direct-answer sentence."""
    *front, last = parts
    lines = str(last).rstrip().split("\n") if isinstance(last, str) else []
    while lines and (_DIRECT_LINE.match(lines[-1]) or not lines[-1].strip()):
        lines.pop()
    kind, what = ("multiple choice", "$LETTER") if sample.options else ("open", "$FINAL_ANSWER")
    return [*front, "\n".join(lines) + _STEPS.format(kind=kind, what=what)]

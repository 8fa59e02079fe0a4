"""The tiny world in the formats of real benchmarks: options, numbers, words, a judge. `stages.tiny.benchmark_files`
writes the files.

The tiny models know their questions as they were trained on them: the prompt is the bare question, and options are for
scoring.
"""

from dataclasses import replace

from stages.benchmarks import scorers
from stages.benchmarks.prompts import PROMPT_STYLES, PromptPart
from stages.benchmarks.sample import Outcome, Sample
from stages.benchmarks.scorers import OURS
from stages.benchmarks.spec import Hub, NumberFields, Spec, Tsv, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow
from stages.corpora.scoring import find_last_number, is_correct

NUMBER = {"question_type": "free_form", "answer_type": "integer", "precision": None, "answer_option": ""}


def make_world_hub_sample(row: TableRow) -> Sample:
    """A row with a number as reference."""
    groups = {"category": (row.text("kind"),)}
    return Sample(
        row.text("id"), row.text("question"), row.text("answer"), {}, "", groups, NUMBER, row.pictures["image"]
    )


def ask_world_bare(sample: Sample) -> list[PromptPart]:
    """The question, then its picture, as the tiny world asks."""
    return [f"{sample.question}\n", *sample.pictures]


def score_last_number_option(sample: Sample, reply: str) -> Outcome:
    """The option that is the last number of the reply: the tiny models write numbers, not letters."""
    said = find_last_number(reply)
    named = [letter for letter, text in sample.options.items() if text == said]
    return Outcome.from_extraction(named[0] if named else None, bool(named) and named[0] == sample.gold, "last number")


def score_last_number_or_text(sample: Sample, reply: str) -> Outcome:
    """The tiny world's own rule: the last number, else the same text."""
    return Outcome.from_extraction(reply or None, is_correct(reply, sample.gold), "last number or text")


_CHOICE = Spec(
    id="tiny_choice",
    title="Tiny world, options",
    column="",
    expected=0,
    licence="Apache-2.0",
    tsv=(Tsv("TinyChoice", {}),),
    make={"tsv": make_tsv_choice_reader("category"), "hub": make_world_hub_sample},
    needs={
        "tsv": ("index", "question", "A", "B", "answer", "image"),
        "hub": ("id", "question", "answer", "kind", "image"),
    },
    prompts=dict.fromkeys(PROMPT_STYLES, ask_world_bare),
    scorers={OURS: score_last_number_option},
    judge="none",
    world=True,
)
_FOLDER = replace(_CHOICE, tsv=())
SPECS = (
    _CHOICE,
    replace(
        _FOLDER,
        id="tiny_number",
        title="Tiny world, numbers",
        hub=(Hub(("tiny_number",), "test"),),
        scorers={OURS: scorers.score_ours_mathvista},
        fields=NumberFields,
    ),
    replace(
        _FOLDER,
        id="tiny_open",
        title="Tiny world, open",
        hub=(Hub(("tiny_open",), "test"),),
        scorers={OURS: score_last_number_or_text},
    ),
    replace(
        _CHOICE,
        id="tiny_judged",
        title="Tiny world, judged",
        tsv=(Tsv("TinyJudged", {}),),
        needs={"tsv": ("index", "question", "answer", "image"), "hub": ()},
        scorers={},
        judge="verdict",
    ),
)

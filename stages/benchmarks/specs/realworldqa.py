"""RealWorldQA: pictures from cars. Answers are letters in the TSV; letters, words or numbers on the hub."""

import re

from stages.benchmarks import scorers
from stages.benchmarks.prompts import CHOICE_PROMPTS, ask_as_it_stands
from stages.benchmarks.sample import Outcome, Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, Spec, Tsv, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow

_OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


def make_realworldqa_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of xai-org/RealworldQA; the question contains options and instruction."""
    question, gold = row.text("question"), row.text("answer").strip()
    options = {one: text.strip() for one, text in _OPTION.findall(question)}
    options = options if gold.upper() in options else {}
    return Sample(row.text("image_path", row.where), question, gold, options, pictures=row.pictures["image"])


def score_ours_realworldqa(sample: Sample, reply: str) -> Outcome:
    """Scores a letter by our rule, a word or a number as text."""
    return scorers.score_ours_choice(sample, reply) if sample.options else scorers.score_lmms_realworldqa(sample, reply)


SPECS = (
    Spec(
        id="realworldqa",
        title="RealWorldQA",
        column="RWQA",
        expected=765,
        licence="CC BY-ND 4.0",
        tsv=(Tsv("RealWorldQA", {"4de008f55dc4fd008ca9e15321dc44b7": ""}),),
        hub=(Hub(("xai-org/RealworldQA", "lmms-lab/RealWorldQA", "lmms-lab-encoder/RealWorldQA"), "test"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_realworldqa_hub_sample},
        needs={"tsv": ("index", "question", "answer", "image"), "hub": ("question", "answer", "image")},
        prompts={**CHOICE_PROMPTS, "lmms": ask_as_it_stands},
        scorers={
            OURS: score_ours_realworldqa,
            VLMEVAL: scorers.score_vlmeval_choice,
            LMMS: scorers.score_lmms_realworldqa,
        },
        groups=(),
    ),
)

"""MMStar: 1,500 questions that need their picture, in six categories of 250."""

import re

from stages.benchmarks.aggregate import macro_average
from stages.benchmarks.prompts import CHOICE_PROMPTS, ask_as_it_stands
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, Spec, Tsv, make_tsv_choice_reader, read_grouping_columns
from stages.benchmarks.tables import TableRow

_OPTIONS = re.compile(r"\n?Options:\s*(.*)\Z", re.DOTALL)
_OPTION = re.compile(r"(?:\A|,\s+|\n)([A-Z]):\s*(.*?)(?=(?:,\s+|\n)[A-Z]:|\Z)", re.DOTALL)
_GROUPS = ("category", "l2_category", "l2-category")


def make_mmstar_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of Lin-Chen/MMStar; its question contains "Options: A: .., B: .." and keeps it."""
    question = row.text("question")
    listed = _OPTIONS.search(question)
    options = {one: text.strip().rstrip(",") for one, text in _OPTION.findall(listed.group(1))} if listed else {}
    gold = row.text("answer").strip()
    return Sample(
        row.text("index"),
        question,
        gold,
        options,
        groups=read_grouping_columns(row, _GROUPS),
        pictures=row.pictures["image"],
    )


SPECS = (
    Spec(
        id="mmstar",
        title="MMStar",
        column="MMStar",
        expected=1500,
        licence="unstated",
        tsv=(Tsv("MMStar", {"e1ecd2140806c1b1bbf54b43372efb9e": ""}),),
        hub=(Hub(("Lin-Chen/MMStar",), "val"),),
        make={"tsv": make_tsv_choice_reader(*_GROUPS), "hub": make_mmstar_hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "image"),
            "hub": ("index", "question", "answer", "category", "l2_category", "image"),
        },
        prompts={**CHOICE_PROMPTS, "lmms": ask_as_it_stands},
        headline={
            OURS: macro_average("category"),
            VLMEVAL: macro_average("category"),
            LMMS: macro_average("l2_category"),
        },
        groups=("category", "l2_category"),
    ),
)

"""MMStar: 1,500 questions that need their picture, in six categories of 250."""

import re

from stages.benchmarks.aggregate import macro
from stages.benchmarks.prompts import CHOICE, as_it_stands
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, Spec, Tsv, groups_of, tsv_choice
from stages.benchmarks.tables import Row

_OPTIONS = re.compile(r"\n?Options:\s*(.*)\Z", re.DOTALL)
_OPTION = re.compile(r"(?:\A|,\s+|\n)([A-Z]):\s*(.*?)(?=(?:,\s+|\n)[A-Z]:|\Z)", re.DOTALL)
_GROUPS = ("category", "l2_category", "l2-category")


def hub_sample(row: Row) -> Sample:
    """A row of Lin-Chen/MMStar, whose options stand in the question as "Options: A: .., B: .."; the question keeps
    them.
    """
    question = row.text("question")
    listed = _OPTIONS.search(question)
    options = {one: text.strip().rstrip(",") for one, text in _OPTION.findall(listed.group(1))} if listed else {}
    gold = row.text("answer").strip()
    return Sample(
        row.text("index"), question, gold, options, groups=groups_of(row, _GROUPS), pictures=row.pictures["image"]
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
        make={"tsv": tsv_choice(*_GROUPS), "hub": hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "image"),
            "hub": ("index", "question", "answer", "category", "l2_category", "image"),
        },
        prompts={**CHOICE, "lmms": as_it_stands},
        headline={OURS: macro("category"), VLMEVAL: macro("category"), LMMS: macro("l2_category")},
        groups=("category", "l2_category"),
    ),
)
